"""A sweep of a multiple-choice task: log-likelihoods by the shared pass against the plain one, in one run.

Each question of the demo comes with its answer and three numbers near it.

    python benchmarks/loglikelihood.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import common
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.variant import Variant

Answers = Mapping[tuple[Variant, int], tuple[Any, ...]]


def main() -> None:
    """Measure and print."""
    parser = common.parser(__doc__, documents=16)
    parser.add_argument("--plain-batch-sizes", type=int, nargs="+", default=[16, 32])
    args = parser.parse_args()
    lm = common.load(args)
    drawn = validation.draw(common.bind(common.demo_task()), args.documents, seed=0)
    assert drawn is not None
    boundaries = common.every_boundary(lm.shape.num_layers)
    work = [Work(choices(document), boundaries) for document in drawn.documents]
    counters = Counters()
    memory = common.Memory(lm.device)
    shared_seconds, shared = common.timed(shared_runner(lm, lm.layers, counters=counters), work)
    shared_gigabytes = memory.gigabytes()
    plain_seconds, plain_gigabytes, plain = {}, {}, {}
    for size in args.plain_batch_sizes:
        lm.batch_size_per_gpu = size
        memory = common.Memory(lm.device)
        plain_seconds[size], plain[size] = common.timed(plain_runner(lm, lm.layers), work)
        plain_gigabytes[size] = memory.gigabytes()
    best = min(plain_seconds.values())
    first, last = plain[args.plain_batch_sizes[0]], plain[args.plain_batch_sizes[-1]]
    differences, relative = largest_differences(first, shared)
    between_sizes, _ = largest_differences(first, last)
    common.emit(
        benchmark="loglikelihood",
        documents=len(work),
        choices=4,
        boundaries=len(boundaries),
        plain_seconds={size: round(seconds, 1) for size, seconds in plain_seconds.items()},
        shared_seconds=shared_seconds,
        ratio=best / shared_seconds,
        compared=sum(map(len, shared.values())),
        largest_difference=f"{differences:.1e}",
        largest_relative_difference=f"{relative:.1e}",
        largest_difference_between_plain_batch_sizes=f"{between_sizes:.1e}",
        layer_rows=counters.layer_rows,
        shared_gigabytes=shared_gigabytes,
        plain_gigabytes=plain_gigabytes,
    )


def largest_differences(first: Answers, second: Answers) -> tuple[float, float]:
    """Of the log-likelihoods, absolute and relative to the first."""
    pairs = [(a[0], b[0]) for key in first for a, b in zip(first[key], second[key], strict=True)]
    return max(abs(a - b) for a, b in pairs), max(abs((a - b) / a) for a, b in pairs)


def choices(document: Document) -> Document:
    """The same question with four answers to choose from."""
    prompt, answer = document.requests[0].args[0], int(document.doc["answer"])
    texts = [f" The answer is {answer + shift}." for shift in (0, 1, -1, 10)]
    requests = tuple(Instance("loglikelihood", document.doc, (prompt, text), i) for i, text in enumerate(texts))
    return Document(document.doc_id, document.doc, requests, document.key)


if __name__ == "__main__":
    main()
