"""What every backend shares: one variant per task, when to search it, what goes into the results file.

`LoraDropBase` stands before a harness model class in the bases of a backend and answers its three request types:

    requests of all tasks -> grouped by task -> the task's variant is given, or found on validation documents
    -> the task's own requests run under it, by the harness class -> answers back in the order they came

It knows no torch. A backend says how layers are kept and how a sweep runs (the methods at the end of the class).
"""

from __future__ import annotations

import abc
import difflib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from lm_eval.api.instance import Instance
from platformdirs import user_cache_path

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.backends.cache_guard import CacheGuard
from lm_eval_lora_drop.backends.state import Decision, RunState
from lm_eval_lora_drop.endings import on_interrupt
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable, is_folder, user_path
from lm_eval_lora_drop.harness.arguments import check_given_once, typed_model_args
from lm_eval_lora_drop.harness.other_task import check_other_task
from lm_eval_lora_drop.harness.task_index import listed_metrics, running_evaluation, task_manager
from lm_eval_lora_drop.harness.work import AdapterShape, Binding, Document, Pass, Peers
from lm_eval_lora_drop.options import LoraDropArgs, answer_changing, without_effect
from lm_eval_lora_drop.record.answers import KeptAnswers
from lm_eval_lora_drop.record.choice import read_recorded
from lm_eval_lora_drop.record.events import Broadcast, Finished, Listener
from lm_eval_lora_drop.record.fingerprint import digest, library_versions
from lm_eval_lora_drop.record.schema import SCHEMA, AdapterRecord, BaseRecord, RunRecord, TaskRecord, to_entry
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.sweep.documents import binding_of
from lm_eval_lora_drop.sweep.documents.reference import REFERENCE_LOGLIKELIHOOD
from lm_eval_lora_drop.sweep.search import Search
from lm_eval_lora_drop.sweep.select import selection
from lm_eval_lora_drop.sweep.tradeoffs.also import check_also
from lm_eval_lora_drop.sweep.tradeoffs.bounds import check_bounds, parse_bounded
from lm_eval_lora_drop.sweep.tradeoffs.jointly import check_jointly
from lm_eval_lora_drop.text import logger, shown
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)


@functools.cache  # one filter is enough
def say_once(logger: str) -> None:
    """Of another library's logger let every message through the first time only."""
    said: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        new = (message := record.getMessage()) not in said
        said.add(message)
        return new

    logging.getLogger(logger).addFilter(first)


def check_before_loading(args: LoraDropArgs, shape: AdapterShape) -> None:
    """Raise ArgumentError for what cannot work with such an adapter, before minutes of loading its model."""
    args.spec.resolve(shape.num_layers)
    if args.spec.source is not None:
        read_recorded(args.spec.source)
    if args.spec.needs_validation:
        candidates = candidates_of(args, shape).variants
        if rule := parse_bounded(args.sweep_select or ""):
            check_bounds(rule, [one.task for one in args.sweep_also], candidates)
        if args.sweep_jointly and args.spec.kind == "probe":
            raise ArgumentError(
                f"sweep_jointly={args.sweep_jointly} compares the scores of a sweep, and boundary=probe makes none. "
                "Take boundary=auto."
            )
        if args.sweep_jointly:
            check_jointly(
                args.sweep_jointly, args.sweep_candidates.names, args.sweep_strategy, args.sweep_select, candidates
            )
        check_also(args.sweep_also)
        check_writable(sweep_folder(args), "sweep_dir")
        selection(args.sweep_select, args.sweep_strategy, ordered=True)


def check_against_tasks(args: LoraDropArgs, model_args: Mapping[str, Any]) -> None:
    """Check the arguments against the tasks of the running `simple_evaluate`, before the model is loaded.

    Warns of arguments of a sweep where none runs. A metric that a task computes in code is checked by its sweep; so is
    everything outside `simple_evaluate`.

    Raises:
        ArgumentError: no such `data_dir`, or a `sweep_metric` that a task's own file does not list.
    """
    if unused := without_effect(model_args, args):
        log.warning(
            "%s has no effect: %s is fixed, so no sweep runs. Leave it out, or give boundary=auto.",
            ", ".join(unused),
            args.spec,
        )
    evaluation = running_evaluation()
    if evaluation is None:
        return
    if evaluation.output is not None:
        # lm-eval answers everything first, then logs that it could not save, and ends with status 0.
        check_writable(evaluation.output, "--output_path")
    names = [task for task in evaluation.tasks if isinstance(task, str)]
    folder = evaluation.metadata.get("data_dir")
    # Other people's tasks may mean something else by it.
    ours = any(name.startswith("lora_drop") for name in names)
    if ours and folder is not None and not is_folder(user_path(str(folder), "data_dir")):
        raise ArgumentError(
            f"data_dir must be a folder with the benchmark's files, got {shown(folder)}, which is not a directory. "
            "Correct the path, or leave data_dir out to read the benchmark from the Hub."
        )
    if args.sweep_task is not None and args.spec.needs_validation:
        check_other_task(args.sweep_task, evaluation.metadata)
    wanted = (args.sweep_metric or REFERENCE_LOGLIKELIHOOD).partition(",")[0].strip()
    if args.spec.kind != "auto" or wanted == REFERENCE_LOGLIKELIHOOD:
        return
    manager = evaluation.manager or task_manager(names)
    for task in evaluation.tasks:
        listed = listed_metrics(manager, task)
        if listed and wanted not in listed:
            near = difflib.get_close_matches(wanted, listed, n=1)
            hint = f" Did you mean sweep_metric={near[0]}?" if near else ""
            raise ArgumentError(
                f"sweep_metric must name a metric of task {shown(task)}, got {shown(wanted)!r}. There are: "
                f"{', '.join(listed)}.{hint}"
            )


def sweep_folder(args: LoraDropArgs) -> Path:
    """Where journals and figures of sweeps lie."""
    return args.sweep_dir or user_cache_path("lm-eval-lora-drop", appauthor=False) / "sweeps"


class LoraDropBase(abc.ABC):
    """Answers requests with the LoRA of some decoder layers dropped; see the module's docstring."""

    args: LoraDropArgs
    shape: AdapterShape
    kept_answers: KeptAnswers | None = None
    """Where answers of the evaluated split are looked up and kept, for runs of one process; None: nowhere."""
    cache_hook: Any
    # From the harness class that stands behind this one in a backend's bases.
    batch_size: Any
    max_length: int
    prefix_token_id: int
    tok_encode: Callable[..., list[int]]
    _encode_pair: Callable[[str, str], tuple[list[int], list[int]]]

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Any:
        """As lm-eval's, which ends in a TypeError where both give an argument.

        Raises:
            ArgumentError: an argument that is given twice.
        """
        check_given_once(typed_model_args(), arg_dict, additional_config or {})
        return super().create_from_arg_obj(arg_dict, additional_config)  # type: ignore[misc]

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Any:
        """As `create_from_arg_obj`."""
        from lm_eval.utils import simple_parse_args_string

        check_given_once([arg_string], simple_parse_args_string(arg_string), additional_config or {})
        return super().create_from_arg_string(arg_string, additional_config)  # type: ignore[misc]

    def _start(self, args: LoraDropArgs, shape: AdapterShape, listeners: Sequence[Listener]) -> None:
        """Take up work; the model is loaded."""
        self.shape = shape
        self._listeners = Broadcast(listeners)
        self.use(args)

    def use(self, args: LoraDropArgs) -> None:
        """From here on keep what `args` say, on the model that is loaded; decisions taken so far are forgotten.

        Raises:
            ArgumentError: the model has no such layers, or sweep_dir cannot be written.
        """
        check_before_loading(args, self.shape)
        self.args = args
        self._state = RunState()
        on_interrupt(
            f"Finished answers of a sweep are kept in the journal under {sweep_folder(args)}; run the same command to "
            "resume."
            if args.spec.needs_validation
            else "No sweep was running; with --use_cache FILE the answers of a run are kept."
        )

    # The harness's three request types.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """As the harness defines it, each task under its own variant."""
        return self._by_task("generate_until", requests, disable_tqdm)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the harness defines it, each task under its own variant."""
        return self._by_task("loglikelihood", requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """As the harness defines it, each task under its own variant."""
        return self._by_task("loglikelihood_rolling", requests, disable_tqdm)

    def _by_task(self, request_type: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        groups: dict[Binding | None, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(binding_of(request), []).append(index)
        self._state.bindings.answering()
        if self.args.sweep_dry_run:
            self._dry_run([binding for binding in groups if binding is not None])
        # Every variant is settled before the first test document is answered.
        decisions = {binding: self._decide(binding) for binding in groups}
        answers: list[Any] = [None] * len(requests)
        for binding, indices in groups.items():
            mine = [requests[index] for index in indices]
            given = self._answer_or_recall(request_type, mine, decisions[binding].kept, disable_tqdm)
            for index, answer in zip(indices, given, strict=True):
                answers[index] = answer
        return answers

    def _answer_or_recall(
        self, request_type: str, requests: list[Instance], kept: Variant, disable_tqdm: bool
    ) -> list[Any]:
        if self.kept_answers is None:
            return self._answer(request_type, requests, kept, disable_tqdm)
        key = digest(
            *(self.fingerprint_parts(), str(kept), self.args.merge, request_type),
            *(str(getattr(self, "device", "")), self.batch_size),
            *(library_versions(), __version__),
            [request.args for request in requests],
        )
        answers = self.kept_answers.get(key, len(requests))
        if answers is not None:
            log.info("%s requests were answered before under %s: not asked again", len(requests), kept.label)
            return answers
        answers = self._answer(request_type, requests, kept, disable_tqdm)
        self.kept_answers.put(key, answers)
        return answers

    def _dry_run(self, bindings: Sequence[Binding]) -> NoReturn:
        """Log what the sweep of each task of this evaluation would take, and end the program.

        Raises:
            SystemExit: with status 0.
        """
        search = self._search()
        # Of all tasks: those of other request types come in a later call.
        for binding in {one.name: one for one in [*bindings, *self._state.bindings]}.values():
            text = search.dry_run(binding)
            if self.peers().rank == 0:
                log.info("%s", text)
        raise SystemExit(0)

    # One variant per task.

    def _decide(self, binding: Binding | None) -> Decision:
        if binding is None:
            fixed = self.args.spec.resolve(self.shape.num_layers)
            if fixed is None:
                raise ArgumentError(
                    f"{self.args.spec} needs requests that lm-eval built from a task, got requests made by hand. "
                    "Give boundary=K, or evaluate through lm_eval.simple_evaluate."
                )
            return Decision(fixed)
        known = self._state.known(binding)
        if known is None and self.args.sweep_jointly and self.args.spec.kind == "auto":
            # Of all tasks: those of other request types come in a later call.
            together = {one.name: one for one in [*self._state.bindings, binding]}
            records = self._search().decide_jointly(list(together.values()))
            for name, record in records.items():
                self._note(together[name], record)
            return self._state.decisions[binding.name]
        if known is None:
            return self._note(binding, self._search().decide(binding))
        self._state.decided(binding, known)
        return known

    def _note(self, binding: Binding, record: TaskRecord) -> Decision:
        """From here on the task is answered with what its record says."""
        decision = Decision(record.kept, binding, record)
        if self._state.answers is not None:
            self._state.answers.remember(record)
        self._state.decided(binding, decision)
        return decision

    def _search(self) -> Search:
        answers = self._state.answers
        return Search(
            backend=self,
            args=self.args,
            folder=sweep_folder(self.args),
            listeners=self._listeners,
            recall=answers.recall if answers is not None else lambda _: None,
        )

    # What the harness asks besides answers.

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's answer cache, unless its file was written under another setting.

        Raises:
            ArgumentError: it was.
        """
        self._state.bindings.begin()
        if cache_hook.dbdict is not None:
            file = getattr(cache_hook.dbdict, "filename", "the file")
            self._state.answers = CacheGuard(cache_hook.dbdict, self._setting(), file)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def get_model_info(self) -> dict[str, Any]:
        """The harness's model information with our entry (`record.schema`)."""
        # Not every model class of the harness has something to tell (VLLM has not).
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        if self._state.answers is not None:
            # Where every answer came from the cache nobody has asked for the variant yet.
            for binding in self._state.bindings:
                self._decide(binding)
        record = self._run_record(self._state.report())
        for name, task in record.tasks.items():
            log.info(
                "%s: %s (%s), %s adapter parameters kept", name, task.kept.label, task.method, task.kept_parameters
            )
        self._listeners.tell(Finished(record))
        return info | to_entry(record)

    def _run_record(self, tasks: Mapping[str, TaskRecord]) -> RunRecord:
        parts = self.fingerprint_parts()
        return RunRecord(
            schema=SCHEMA,
            version=__version__,
            adapter=msgspec.convert(parts["adapter"], AdapterRecord),
            base=BaseRecord(**parts["base"]),
            dtype=parts["dtype"],
            num_layers=self.shape.num_layers,
            fingerprint=digest(parts),
            libraries=library_versions(),
            tasks=dict(tasks),
        )

    def _setting(self) -> dict[str, Any]:
        """What one answer file may hold answers of."""
        args = self.args
        setting: dict[str, Any] = {"model": digest(self.fingerprint_parts()), **answer_changing(args)}
        if args.spec.source is not None:
            # The file may say something else by the time the answers are read again.
            choices = read_recorded(args.spec.source).record.tasks
            setting["choices"] = {name: task.variant for name, task in choices.items()}
        if args.spec.needs_validation:
            setting["candidates"] = [str(variant) for variant in candidates_of(args, self.shape).variants]
        return setting

    # What a backend provides (see `work.Backend`).

    def memory(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> str:  # noqa: ARG002
        """What a sweep would take of the memory, in words. A backend that takes all of it at the start needs none."""
        return "what the model takes already"

    def probe(self, pairs: Sequence[tuple[str, str]]) -> Any:  # noqa: ARG002
        """The probe of (prompt, reference) pairs. A backend that sees no layers has none.

        Raises:
            ArgumentError: here.
        """
        raise ArgumentError(
            f"boundary=probe reads the model layer by layer, which {type(self).__name__} cannot. Use --model "
            f"hf-lora-drop for it, or boundary=auto."
        )

    def layer_scores(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:  # noqa: ARG002
        """Scores of the layers. A backend that sees no layers has none.

        Raises:
            ArgumentError: here.
        """
        raise ArgumentError(
            f"sweep_candidates=scores reads the model layer by layer, which {type(self).__name__} cannot. Use --model "
            f"hf-lora-drop for it, or other candidates."
        )

    @abc.abstractmethod
    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What changes an answer, apart from the request and the variant; with the keys adapter, base and dtype."""

    @abc.abstractmethod
    def count_parameters(self, kept: Variant) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""

    @abc.abstractmethod
    def prepare(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> Pass:
        """How a sweep of `candidates` over `documents` is answered; every process calls it in step."""

    @abc.abstractmethod
    def peers(self) -> Peers:
        """The processes that evaluate together."""

    @abc.abstractmethod
    def _answer(self, request_type: str, requests: list[Instance], kept: Variant, disable_tqdm: bool) -> list[Any]:
        """The harness class's own answers to requests of the evaluated split, with the LoRA of `kept` only."""
