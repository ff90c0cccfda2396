"""What the benchmarks share: the demo's model, adapter and documents, and one JSON line at the end."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.samplers import FirstNSampler
from lm_eval.tasks import TaskManager
from peft import LoraConfig, PeftModel, get_peft_model
from quantised import KINDS, quantisation
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.files import package_folder
from lm_eval_lora_drop.harness.documents import Answer, Binding
from lm_eval_lora_drop.sweep.backend import Runner, Work
from lm_eval_lora_drop.variant import Variant

ROOT = Path(__file__).parents[1]
TASK = "lora_drop_demo"
# Sizes from the models' config.json, for --shape.
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "Llama-3.1-8B": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def parser(description: str, documents: int) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pretrained", default=str(ROOT / ".demo" / "SmolLM2-135M-Instruct"))
    made.add_argument("--peft", default=str(ROOT / "demo" / "adapter"))
    made.add_argument("--dtype", default="float32")
    made.add_argument("--device", default="cpu")
    made.add_argument("--quantise", choices=KINDS, help="the base model's weights; needs the package named")
    made.add_argument("--shape", choices=SHAPES, help="random weights in this shape, with --pretrained's tokenizer")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--documents", type=int, default=documents)
    return made


def load(args: argparse.Namespace, **model_args: Any) -> LoraDropLM:
    """The model type under test, on the number of threads asked for."""
    torch.set_num_threads(args.threads)
    # Of several adapters "full" would not say which.
    given = {"boundary": "auto" if "+" in args.peft else "full", "batch_size": 16, **model_args}
    if args.shape:
        model = random_model(args)
        return LoraDropLM(pretrained=model, tokenizer=args.pretrained, dtype=args.dtype, **given)
    if args.quantise:
        base = AutoModelForCausalLM.from_pretrained(
            args.pretrained,
            quantization_config=quantisation(args.quantise),
            dtype=getattr(torch, args.dtype),
            device_map=args.device,
        )
        model = PeftModel.from_pretrained(base, args.peft).eval()
        return LoraDropLM(pretrained=model, tokenizer=args.pretrained, dtype=args.dtype, **given)
    return LoraDropLM(pretrained=args.pretrained, peft=args.peft, dtype=args.dtype, device=args.device, **given)


def random_model(args: argparse.Namespace) -> PeftModel:
    """A Llama of a real model's shape with random weights and an adapter of rank 16 on all linear layers, B != 0: what
    time and memory depend on. Its answers mean nothing and rarely end before the limit."""
    tokenizer = AutoTokenizer.from_pretrained(args.pretrained)
    config = LlamaConfig(
        **SHAPES[args.shape],
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(base, lora).eval()


def demo_task(new_tokens: int | None = None, examples: int = 0) -> Any:
    """The demo's task; with `new_tokens` its answers may be so long; the same `examples` solved ones precede each."""
    manager = TaskManager(include_path=str(package_folder("tasks") / "demo"), include_defaults=False)
    task = manager.load([TASK])["tasks"][TASK]
    task.set_config(key="num_fewshot", value=examples)
    task.sampler = FirstNSampler(list(task.fewshot_docs()))
    if new_tokens is not None:
        task.set_config(key="generation_kwargs", value={"max_gen_toks": new_tokens}, update=True)
    task.set_fewshot_seed(1234)
    return task


def every_boundary(num_layers: int) -> tuple[Variant, ...]:
    """From full to base."""
    return tuple(Variant.below(boundary, num_layers) for boundary in range(num_layers, -1, -1))


def bind(task: Any) -> Binding:
    """The task as an evaluation without system prompt and chat template would use it."""
    names = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template")
    return Binding(task, dict.fromkeys(names))


def timed(runner: Runner, work: Iterable[Work]) -> tuple[float, dict[tuple[Variant, int], tuple[Any, ...]]]:
    """Seconds, and (variant, document) -> responses."""
    start = time.perf_counter()
    answers: list[Answer] = [answer for batch in runner(list(work)) for answer in batch]
    seconds = time.perf_counter() - start
    return seconds, {(answer.variant, answer.document.doc_id): answer.responses for answer in answers}


class Memory:
    """The most memory in use since this was made, beyond what was in use then: on a GPU by tensors, on Linux by the
    process, elsewhere unknown."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            # Freed memory that the C library keeps for later would count as in use from the start.
            with contextlib.suppress(AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
            # proc(5): 5 sets the peak of the resident memory back to what is resident.
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._peak()

    def _peak(self) -> float | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if sys.platform == "linux":
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return float(status["VmHWM"].split()[0]) * 1024
        return None

    def gigabytes(self) -> float | None:
        """What was added, in 10^9 bytes; None where unknown."""
        peak = self._peak()
        return None if peak is None or self._before is None else round((peak - self._before) / 1e9, 2)


def emit(**figures: Any) -> None:
    """One JSON line, with the versions of what computed it."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "lm_eval")}
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({**rounded, "threads": torch.get_num_threads(), "versions": versions}), flush=True)
