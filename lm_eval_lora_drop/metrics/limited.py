"""A task whose `process_results` knows how many tokens an answer of this run could have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_lora_drop.harness.facts.generation import generation_arguments


class LimitedTask(ConfigurableTask):
    """A task of the harness that hands `max_gen_toks` to a `process_results` that takes it.

    A task's YAML names the limit, and `--gen_kwargs` changes it; without either it is 256, as for `hf`. Named in a
    task's YAML: `class: !function lm_eval_lora_drop.metrics.limited.LimitedTask`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """The task's own metrics."""
        own = self.config.process_results
        if callable(own) and "max_gen_toks" in inspect.signature(own).parameters:
            limit = generation_arguments(self.config.generation_kwargs)["max_gen_toks"]
            found: dict[str, Any] = own(doc, results, max_gen_toks=limit)
        else:
            found = super().process_results(doc, results)
        return found
