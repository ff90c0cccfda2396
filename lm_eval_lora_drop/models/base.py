"""What every backend shares: one boundary per task, when to search it, what goes into the results file.

`LoraDropBase` stands before a harness model class in the bases of a backend and answers its three request types:

    requests of all tasks -> grouped by task -> the task's boundary is given, or found on validation documents
    -> the task's own requests run under it, by the harness class -> answers back in the order they came

It knows no torch. A backend says how layers are kept and how a sweep runs (the methods at the end of the class).
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from platformdirs import user_cache_path

from lm_eval_lora_drop import __version__, validation
from lm_eval_lora_drop.boundary import LayerSet
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.models.args import LoraDropArgs
from lm_eval_lora_drop.models.cache_guard import CacheGuard
from lm_eval_lora_drop.models.search import search
from lm_eval_lora_drop.record.decision import SCHEMA, Decision, digest, library_versions
from lm_eval_lora_drop.record.journal import check_writable
from lm_eval_lora_drop.sweep.run import Peers
from lm_eval_lora_drop.work import Document, Runner

log = logging.getLogger(__name__)


def log_with_the_harness() -> None:
    """Send our log records where the harness sends its own: same handler, same level, same look."""
    logging.getLogger("lm_eval_lora_drop").parent = logging.getLogger("lm_eval")


class LoraDropBase(abc.ABC):
    """Answers requests with the LoRA of some decoder layers dropped; see the module's docstring."""

    lora_drop: LoraDropArgs
    num_layers: int
    cache_hook: Any

    # What a backend calls.

    @staticmethod
    def _check_before_loading(args: LoraDropArgs, num_layers: int) -> None:
        """Raise ArgumentError for what cannot work with a model of `num_layers`, before minutes of loading it."""
        args.spec.resolve(num_layers)
        if args.spec.needs_validation:
            args.candidates(num_layers)
            check_writable(_sweep_folder(args))

    def _start(self, args: LoraDropArgs, num_layers: int) -> None:
        """Take up work; the model is loaded."""
        self.lora_drop = args
        self.num_layers = num_layers
        self._decisions: dict[str, Decision] = {}
        # The tasks of the run that is going on, or of the last one: one model may be evaluated several times.
        self._of_this_run: dict[str, Decision] = {}
        self._reported = False
        self._cache_guard: CacheGuard | None = None
        validation.bind_requests()

    # The harness's three request types.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the harness defines it, each task under its own boundary."""
        return self._by_task("generate_until", requests, disable_tqdm)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness defines it, each task under its own boundary."""
        return self._by_task("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the harness defines it, each task under its own boundary."""
        return self._by_task("loglikelihood_rolling", requests, disable_tqdm)

    def _by_task(self, request_type: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        groups: dict[validation.Binding | None, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(validation.binding_of(request), []).append(index)
        # Every boundary is settled before the first test document is answered.
        decisions = {binding: self._decide(binding) for binding in groups}
        answers: list[Any] = [None] * len(requests)
        for binding, indices in groups.items():
            mine = [requests[index] for index in indices]
            given = self._answer(request_type, mine, decisions[binding].kept, disable_tqdm)
            for index, answer in zip(indices, given, strict=True):
                answers[index] = answer
        return answers

    # One boundary per task.

    def _decide(self, binding: validation.Binding | None) -> Decision:
        fixed = self.lora_drop.spec.resolve(self.num_layers)
        if binding is None:
            if fixed is None:
                raise ArgumentError(
                    f"{self.lora_drop.spec} needs requests that lm-eval built from a task, got requests made by hand. "
                    "Give boundary=K, or evaluate through lm_eval.simple_evaluate."
                )
            return Decision(fixed, method="given")
        if self._reported:
            self._of_this_run, self._reported = {}, False
        known = self._decisions.get(binding.name)
        if known is not None and known.binding is binding:
            self._of_this_run[binding.name] = known
            return known
        if fixed is None:
            decision = search(self, binding)
        else:
            method = "default" if self.lora_drop.spec.kind == "default" else "given"
            decision = Decision(fixed, method, binding, self.task_fingerprint(binding))
        self._decisions[binding.name] = self._of_this_run[binding.name] = decision
        if self._cache_guard is not None:
            self._cache_guard.remember(decision, self._record(decision))
        return decision

    def recall(self, fingerprint: str) -> Decision | None:
        """The decision that the answer cache holds for `fingerprint`, where the run has one."""
        return None if self._cache_guard is None else self._cache_guard.recall(fingerprint)

    def sweep_folder(self) -> Path:
        """Where journals and figures of sweeps lie."""
        return _sweep_folder(self.lora_drop)

    def task_fingerprint(self, binding: validation.Binding) -> str:
        """What identifies answers to this task's prompts: model, adapter and dtype, task name and version."""
        return digest(self.fingerprint_parts(), binding.name, binding.task.VERSION)

    # What the harness asks besides answers.

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's answer cache, unless its file was written under another setting.

        Raises:
            ArgumentError: it was.
        """
        validation.forget_bindings()
        if cache_hook.dbdict is not None:
            file = getattr(cache_hook.dbdict, "filename", "the file")
            self._cache_guard = CacheGuard(cache_hook.dbdict, self._setting(), file)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def get_model_info(self) -> dict[str, Any]:
        """The harness's model information with our entry `lora_drop` (design, section 4)."""
        # Not every model class of the harness has something to tell (VLLM has not).
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        if self._cache_guard is not None:
            # Where every answer came from the cache nobody has asked for the boundary yet.
            for binding in validation.recent_bindings():
                self._decide(binding)
        self._reported = True
        for name, decision in self._of_this_run.items():
            log.info("%s: %s", name, self._summary(decision))
        parts = self.fingerprint_parts()
        return info | {
            "lora_drop": {
                "schema": SCHEMA,
                "version": __version__,
                **{key: parts[key] for key in ("adapter", "base", "dtype")},
                "num_layers": self.num_layers,
                "fingerprint": digest(parts),
                "libraries": library_versions(),
                "tasks": {name: self._record(decision) for name, decision in self._of_this_run.items()},
            }
        }

    def probe(self, pairs: Sequence[tuple[str, str]]) -> Any:  # noqa: ARG002
        """The probe of (prompt, reference) pairs: a `probe.run.ProbeResult`. A backend that sees no layers has none.

        Raises:
            ArgumentError: here.
        """
        raise ArgumentError(
            f"boundary=probe reads the model layer by layer, which {type(self).__name__} cannot. Use --model "
            f"hf-lora-drop for it, or boundary=auto."
        )

    def _record(self, decision: Decision) -> dict[str, Any]:
        return decision.to_json(*self.count_parameters(decision.kept))

    def _summary(self, decision: Decision) -> str:
        kept, _ = self.count_parameters(decision.kept)
        boundary = decision.kept.boundary
        what = f"layers {decision.kept.spec}" if boundary is None else f"boundary {boundary} of {self.num_layers}"
        return f"{what} ({decision.method}), {kept:,} adapter parameters kept"

    def _setting(self) -> dict[str, Any]:
        """What one answer file may hold answers of."""
        args = self.lora_drop
        setting: dict[str, Any] = {"model": digest(self.fingerprint_parts()), "boundary": str(args.spec)}
        if args.spec.needs_validation:
            setting |= {
                "sweep_boundaries": list(args.candidates(self.num_layers)),
                "sweep_limit": args.sweep_limit,
                "sweep_metric": args.sweep_metric,
                "sweep_strategy": args.sweep_strategy,
                "sweep_select": args.sweep_select,
                "sweep_seed": args.sweep_seed,
            }
        return setting

    # What a backend provides.

    @abc.abstractmethod
    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What changes an answer, apart from the request and the boundary; with the keys adapter, base and dtype."""

    @abc.abstractmethod
    def count_parameters(self, kept: LayerSet) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""

    @abc.abstractmethod
    def runner(self, documents: Sequence[Document]) -> tuple[Runner, str]:
        """A runner for a sweep over `documents`, and the name of the engine behind it (shared, plain, vllm)."""

    @abc.abstractmethod
    def peers(self) -> Peers:
        """The processes that evaluate together."""

    @abc.abstractmethod
    def _answer(self, request_type: str, requests: list[Instance], kept: LayerSet, disable_tqdm: bool) -> list[Any]:
        """The harness class's own answers to requests of the evaluated split, with the LoRA of `kept` only."""


def _sweep_folder(args: LoraDropArgs) -> Path:
    return args.sweep_dir or user_cache_path("lm-eval-lora-drop", appauthor=False) / "sweeps"
