"""A whole evaluation of a toy task as a program, for tests that kill it or launch it on several processes.

usage: python -m testing.evaluate_toy SETTINGS    with SETTINGS a JSON object:
    backend: hf or vllm;  model_args: its own;  output: where each rank writes <output>.<rank>.json;
    kill_after, kill_rank: SIGKILL that rank after it has been given so many answers of the sweep, or of the test split
    beside the harness's;  tasks: how many;  limit: test documents of each
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys

import torch

from testing.toy import evaluate, make_task


class Counting:
    """Counts the answers of a sweep and, if told to, dies in the middle of it as by a power cut."""

    answered = 0
    kill_after: int | None = None

    def prepare(self, documents, candidates):
        way = super().prepare(documents, candidates)

        def counting(work):
            for batch in way.runner(work):
                self.answered += len(batch)
                yield batch
                # Here the sweep has written the batch down and asks for the next one.
                if self.kill_after is not None and self.answered >= self.kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return dataclasses.replace(way, runner=counting)


def backend(name):
    if name == "vllm":
        from lm_eval_lora_drop.backends.vllm import VllmLoraDropLM

        return VllmLoraDropLM
    from lm_eval_lora_drop.backends.hf import LoraDropLM

    return LoraDropLM


def main(settings):
    torch.set_num_threads(1)
    cls = type("CountingLM", (Counting, backend(settings.get("backend", "hf"))), {})
    lm = cls(**settings["model_args"], device="cpu", dtype="float32", batch_size=2)
    if settings.get("kill_rank", 0) == lm.rank:
        lm.kill_after = settings.get("kill_after")
    tasks = [make_task(f"toy{i}") for i in range(settings.get("tasks", 1))]
    results = evaluate(lm, *tasks, limit=settings.get("limit"))
    found = {"answered": lm.answered, "requests": sum(len(task.instances) for task in tasks)}
    if results is not None:
        found |= {
            "tasks": results["config"]["lora_drop"]["tasks"],
            "results": results["results"],
            "samples": {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in results["samples"].items()},
        }
    with open(f"{settings['output']}.{lm.rank}.json", "w") as file:
        json.dump(found, file, default=str)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
