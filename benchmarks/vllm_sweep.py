"""All candidate boundaries together against one after another, in the same vLLM engine: prints the ratio of the times.

usage: python benchmarks/vllm_sweep.py --pretrained MODEL --peft ADAPTER --data validation.jsonl [options]

The rows are the same (every document under every candidate), so are the adapters in the engine and the code that asks;
only what is submitted in one call differs. Both ways take turns, after one round that is not counted, and answers that
differ between them are counted. --profile adds where the time of the first way goes. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import torch
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant


def documents(file: Path, template: str, number: int, tokens: int) -> list[Document]:
    """One request of generate_until per line; every answer runs to its own end, at most `tokens` long."""
    made = []
    for doc_id, line in enumerate(file.read_text(encoding="utf-8").splitlines()[:number]):
        row = json.loads(line)
        prompt = template.format_map(row)
        decoding = {"until": [], "max_gen_toks": tokens, "do_sample": False}
        request = Instance("generate_until", row, (prompt, decoding), doc_id)
        made.append(Document(doc_id, row, (request,), hashlib.sha256(prompt.encode()).hexdigest()))
    return made


def run(lm: VllmLoraDropLM, docs: list[Document], calls: list[tuple[Variant, ...]]) -> tuple[float, dict[Any, Any]]:
    """Seconds, and the answers by variant and document; one runner call for each of `calls`."""
    answer = lm.prepare(docs, sorted({one for call in calls for one in call}, key=str)).runner
    found = {}
    start = time.perf_counter()
    for variants in calls:
        for batch in answer([Work(document, variants) for document in docs]):
            found.update({(one.variant, one.document.doc_id): one.responses for one in batch})
    return time.perf_counter() - start, found


def profile(lm: VllmLoraDropLM, docs: list[Document], calls: list[tuple[Variant, ...]]) -> str:
    """The operators that took most of the engine's own time, with their share of it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        run(lm, docs, calls)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(f"{event.key} {event.self_cpu_time_total / total:.0%}" for event in events[:6])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--peft", required=True)
    parser.add_argument("--data", required=True, type=Path, help="JSON Lines")
    parser.add_argument(
        "--template", default="Dialogue:\n{dialogue}\n\nSummary:", help="of the prompt, with the columns"
    )
    parser.add_argument("--boundaries", default="0-30")
    parser.add_argument("--documents", default=8, type=int)
    parser.add_argument("--tokens", default=32, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-model-len", default=512, type=int)
    parser.add_argument(
        "--max-num-batched-tokens",
        type=int,
        help="tokens per step; 512 on CPU unless given, vLLM's own default is 4096",
    )
    parser.add_argument("--profile", action="store_true", help="one more round with the profiler of torch")
    given = parser.parse_args()

    wanted = sorted(parse_model_args({"sweep_boundaries": given.boundaries}, ())[0].sweep_boundaries, reverse=True)
    lm = VllmLoraDropLM(
        pretrained=given.pretrained,
        peft=given.peft,
        dtype=given.dtype,
        max_model_len=given.max_model_len,
        enforce_eager=True,
        **({"max_num_batched_tokens": given.max_num_batched_tokens} if given.max_num_batched_tokens else {}),
        # A later round would otherwise find its prompts computed.
        enable_prefix_caching=False,
        max_loras=sum(boundary > 0 for boundary in wanted),
        sweep_boundaries=given.boundaries,
        sweep_batch_size=given.documents * len(wanted),
        disable_log_stats=True,
    )
    docs = documents(given.data, given.template, given.documents, given.tokens)
    variants = tuple(Variant.below(boundary, lm.shape.num_layers) for boundary in wanted)
    ways = {"together": [variants], "one by one": [(variant,) for variant in variants]}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(given.rounds + 1):
        answers = {}
        for way, calls in ways.items():
            seconds, answers[way] = run(lm, docs, calls)
            if number:
                times[way].append(seconds)
            print(f"round {number}, {way}: {seconds:.1f} s{'' if number else ' (not counted)'}", flush=True)
        one, other = answers.values()
        differing = sum(one[key] != other[key] for key in one)
        print(f"  {differing} of {len(one)} answers differ")
    together, apart = (statistics.median(times[way]) for way in ways)
    print(f"{len(variants)} boundaries x {len(docs)} documents, up to {given.tokens} tokens, {given.rounds} rounds")
    print(f"medians: together {together:.1f} s, one by one {apart:.1f} s, ratio {apart / together:.2f}")
    if given.profile:
        print(f"profile of together: {profile(lm, docs, ways['together'])}")


if __name__ == "__main__":
    main()
