"""A local HTTP server that speaks the wire formats of the three providers, checks requests and counts what it bills."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lm_eval_lora_drop.judge.score import Item

KEYS = {"openai": "sk-planted-openai-1", "anthropic": "sk-ant-planted-2", "google": "AIza-planted-3"}
VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY", "google": "GEMINI_API_KEY"}
USAGE = (100, 4)
"""Input and output tokens that every answer claims to have taken."""
PROVIDERS = tuple(KEYS)


def items(number: int) -> list[Item]:
    """Summaries to be judged, told apart by their number."""
    return [Item("summary", f"Ann: {i}?", f"reference {i}", f"prediction {i}") for i in range(number)]


def number_of(request: Request) -> int:
    """Which of `items` a request is about."""
    return int(re.search(r"prediction (\d+)", request.prompt)[1])


@dataclass
class Say:
    """What the server does with one request. `fault`: drop, hang, malformed, half, drip, or empty for none of these."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    refusal: bool = False
    fault: str = ""
    error: str = "planned fault"
    body: bytes | None = None
    """Sent with status 200 as it is, and billed: the provider has done its work, whatever it makes of the response."""
    change: Callable[[dict[str, Any]], Any] | None = None
    """What is done to an otherwise good response before it is sent."""


@dataclass
class Request:
    provider: str
    model: str
    prompt: str
    structured: bool
    body: dict[str, Any]
    time: float


def score_json(value: Any) -> str:
    return json.dumps({"score": value})


class JudgeServer:
    """`behaviour(request, nth)` decides, `nth` counting the requests for this provider, model and prompt from 1."""

    def __init__(
        self, behaviour: Callable[[Request, int], Say], keys: dict[str, str] | None = None, port: int = 0
    ) -> None:
        self.keys = keys or KEYS
        self.headers: list[dict[str, str]] = []
        self.behaviour = behaviour
        self.requests: list[Request] = []
        self.billed: Counter[tuple[str, str, str]] = Counter()
        self.wrong: list[str] = []
        self.active = self.most_active = 0
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server._serve(self)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass  # clients are killed on purpose

        self._http = Server(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def url(self, provider: str) -> str:
        return f"http://127.0.0.1:{self.port}" + ("/v1" if provider == "openai" else "")

    def judge(self, provider: str, model: str = "judge-1", **settings: Any) -> dict[str, Any]:
        """A judge's entry in a panel file."""
        return {
            "name": f"{provider}-judge",
            "provider": provider,
            "model": model,
            "base_url": self.url(provider),
            "api_key_env": VARIABLES[provider],
            "price": {"input": 1.0, "output": 10.0},
            **settings,
        }

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        request = self._understand(handler, body)
        if request is None:
            self._send(handler, 404, {"error": {"message": "no such path", "type": "not_found_error"}})
            return
        key = (request.provider, request.model, request.prompt)
        with self._lock:
            self.requests.append(request)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self._seen[key] += 1
            nth = self._seen[key]
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            self._answer(handler, request, self.behaviour(request, nth), key)
        finally:
            with self._lock:
                self.active -= 1

    def _answer(self, handler, request, say, key) -> None:
        if say.fault == "hang":
            time.sleep(1.5)
            say = Say(fault="drop")
        if say.fault == "drop":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if say.fault == "half":
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", "5000")
            handler.end_headers()
            handler.wfile.write(b'{"id": "x", ')
            handler.close_connection = True
            return
        if say.fault == "malformed":
            self._send(handler, 200, b'{"id": "x", "choices": [{"mess')
            return
        if say.status != 200:
            kind = {529: "overloaded_error", 429: "rate_limit_error"}.get(say.status, "api_error")
            error = {"message": say.error, "type": kind, "status": "PLANNED", "code": say.status}
            self._send(handler, say.status, {"type": "error", "error": error}, say.headers)
            return
        # Counted before it is sent: what the client makes of it is not the provider's concern.
        with self._lock:
            self.billed[key] += 1
        body = say.body
        if body is None:
            built = BODIES[request.provider](request, say)
            body = json.dumps(say.change(built) if say.change else built).encode()
        if say.fault == "drip":
            self._drip(handler, body)
            return
        self._send(handler, 200, body, say.headers)

    def _drip(self, handler, body) -> None:
        """A byte each tenth of a second, so that no time-out between two bytes ever ends it."""
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        try:
            for place in range(len(body)):
                handler.wfile.write(body[place : place + 1])
                time.sleep(0.1)
        except OSError:
            pass
        handler.close_connection = True

    def _understand(self, handler, body) -> Request | None:
        path, headers = handler.path, handler.headers
        gemini = re.fullmatch(r"/v1(?:beta)?/models/([\w.-]+):generateContent", path)
        if path == "/v1/chat/completions":
            self._expect(headers.get("authorization") == f"Bearer {self.keys['openai']}", "openai key")
            format_ = body.get("response_format")
            if format_:
                self._expect(format_["type"] == "json_schema" and format_["json_schema"]["strict"] is True, "format")
            self._expect([m["role"] for m in body["messages"]] == ["user"], "openai messages")
            self._expect(("max_tokens" in body) != ("max_completion_tokens" in body), "openai limit")
            return self._request("openai", body["model"], body["messages"][0]["content"], bool(format_), body)
        if path == "/v1/messages":
            # The SDK 2.12 sends the key as a bearer token; releases before it as x-api-key.
            sent = [headers.get("x-api-key"), headers.get("authorization")]
            key = self.keys["anthropic"]
            self._expect(sent in ([key, None], [None, f"Bearer {key}"]), "anthropic key")
            self._expect(re.fullmatch(r"\d{4}-\d\d-\d\d", headers.get("anthropic-version", "")) is not None, "version")
            self._expect("temperature" not in body and body["max_tokens"] > 0, "anthropic body")
            format_ = body.get("output_config", {}).get("format")
            if format_:
                self._expect(format_["type"] == "json_schema" and "properties" in format_["schema"], "anthropic format")
            return self._request("anthropic", body["model"], body["messages"][0]["content"], bool(format_), body)
        if gemini:
            self._expect(headers.get("x-goog-api-key") == self.keys["google"], "google key")
            config = body["generationConfig"]
            structured = config.get("responseMimeType") == "application/json"
            # google-generativeai knows no JSON schema.
            old = "google-genai" not in headers.get("x-goog-api-client", "")
            self._expect(old or not structured or "properties" in config["responseJsonSchema"], "google schema")
            return self._request("google", gemini[1], body["contents"][0]["parts"][0]["text"], structured, body)
        self.wrong.append(f"path {path}")
        return None

    def _request(self, provider, model, prompt, structured, body) -> Request:
        return Request(provider, model, prompt, structured, body, time.monotonic())

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def _send(self, handler, status, body, headers=None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


def _openai(request: Request, say: Say) -> dict[str, Any]:
    refusal = say.text if say.refusal else None
    message = {"role": "assistant", "content": None if say.refusal else say.text, "refusal": refusal}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": say.model or request.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1], "total_tokens": sum(USAGE)},
    }


def _anthropic(request: Request, say: Say) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": say.model or request.model,
        "content": [{"type": "text", "text": say.text}] if say.text else [],
        "stop_reason": "refusal" if say.refusal else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": USAGE[0], "output_tokens": USAGE[1]},
    }


def _google(request: Request, say: Say) -> dict[str, Any]:
    usage = {"promptTokenCount": USAGE[0], "candidatesTokenCount": USAGE[1], "totalTokenCount": sum(USAGE)}
    served = {"modelVersion": say.model or request.model, "usageMetadata": usage}
    if say.refusal:
        return {"promptFeedback": {"blockReason": "SAFETY"}, **served}
    parts = [{"text": say.text}] if say.text else []
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP", "index": 0}],
        **served,
    }


BODIES = {"openai": _openai, "anthropic": _anthropic, "google": _google}
