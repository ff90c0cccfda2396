"""A local HTTP server that answers OpenAI's completions with a real model: greedy texts, prompt log-probabilities.

`kind` is what it knows: "echo" (vLLM, SGLang: log-probabilities of the prompt), "strict" (refuses `echo` and
`logprobs`, as Transformers does), "deaf" (passes over both).
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class CompletionsServer:
    """`model` is one of Transformers or PEFT; with `answer` given, (status, headers, body) is what is said to all."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        kind: str = "echo",
        key: str = "",
        answer: tuple[int, dict, bytes] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.kind, self.key, self.answer = model, tokenizer, kind, key, answer
        self.headers: list[dict[str, str]] = []
        self.asked: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.asked.append({"path": self.path, **asked})
                status, headers, body = server.answer or server.complete(self.path, asked, self.headers)
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> CompletionsServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._http.server_close()

    @torch.no_grad()
    def complete(self, path: str, asked: dict[str, Any], headers: Any) -> tuple[int, dict, bytes]:
        """What the model says."""
        if self.key and headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, f"not the key: {headers.get('Authorization')}")
        if path != "/v1/completions" or asked["model"] != "served":
            return _error(404, f"the model `{asked['model']}` does not exist")
        if self.kind == "strict" and {"echo", "logprobs"} & asked.keys():
            return _error(422, "unsupported fields: echo, logprobs")
        ids = self.tokenizer(asked["prompt"], return_tensors="pt").input_ids
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=asked["max_tokens"], do_sample=False
        )
        said = out[0, ids.shape[1] :]
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None}
        choice["finish_reason"] = "stop" if said[-1] == self.model.generation_config.eos_token_id else "length"
        if self.kind == "echo" and asked.get("echo"):
            logprobs = self.model(out).logits[0, :-1].log_softmax(-1).gather(1, out[0, 1:, None])[:, 0]
            choice["logprobs"] = {"token_logprobs": [None, *logprobs.tolist()]}
            choice["text"] = asked["prompt"] + text
        usage = {"prompt_tokens": ids.shape[1], "completion_tokens": len(said), "total_tokens": out.shape[1]}
        body = {
            "id": "1",
            "object": "text_completion",
            "created": 0,
            "model": "served",
            "choices": [choice],
            "usage": usage,
        }
        return 200, {}, json.dumps(body).encode()


def _error(status: int, message: str) -> tuple[int, dict, bytes]:
    return status, {}, json.dumps({"error": {"message": message, "type": "planted"}}).encode()
