"""A local Transformers model as a judge: no key, no cost, and for a small model no judgement to speak of."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers import Provider, refuse_options
from lm_eval_lora_drop.judge.providers.wire import CallError
from lm_eval_lora_drop.judge.questions import Question


def open_provider(judge: Judge, timeout: float) -> Provider:  # noqa: ARG001  a local model takes the time it takes
    """Options are `device`, `dtype`, `revision` and `temperature`; decoding is greedy where that is 0 or not given."""
    refuse_options(judge, ("device", "dtype", "revision", "temperature"), "hf judge", ())
    return LocalJudge(judge)


class LocalJudge:
    """A causal model, loaded at the first question."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._loaded: tuple[Any, Any] | None = None

    async def ask(self, question: Question) -> bytes:
        """Generate, in a thread: calls to other providers go on meanwhile."""
        try:
            return await asyncio.to_thread(self._generate, question)
        except ArgumentError as error:
            raise CallError(str(error), permanent=True) from None
        except Exception as error:  # noqa: BLE001  out of memory, a chat template that fails: other judges go on
            raise CallError(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        """Let the model go."""
        self._loaded = None

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = self._judge.options
        revision = options.get("revision") or "main"
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._judge.model, revision=revision)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._judge.model, revision=revision, dtype=options.get("dtype") or "auto"
            )
        except (OSError, ValueError) as error:
            raise ArgumentError(f"judge {self._judge.name}: {self._judge.model} cannot be loaded: {error}") from error
        device = options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        return tokenizer, model.to(device).eval()

    def _generate(self, question: Question) -> bytes:
        import torch

        self._loaded = self._loaded or self._load()
        tokenizer, model = self._loaded
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": question.prompt}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(question.prompt, return_tensors="pt")
        length = int(inputs["input_ids"].shape[1])
        temperature = float(self._judge.options.get("temperature") or 0)
        # Seeded by the sample: the same question has the same answers. A local judge is asked one question at a time.
        torch.manual_seed(question.sample)
        with torch.inference_mode():
            output = model.generate(
                **inputs.to(model.device),
                max_new_tokens=self._judge.max_tokens,
                **({"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}),
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
        new = output[0, length:]
        text = tokenizer.decode(new, skip_special_tokens=True)
        ended = len(new) < self._judge.max_tokens
        said = {
            "text": text,
            "model": self._judge.model,
            "stop": "stop" if ended else "length",
            "input_tokens": length,
            "output_tokens": len(new),
        }
        return json.dumps(said).encode()
