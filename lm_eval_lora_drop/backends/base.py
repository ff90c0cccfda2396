"""What every backend shares: one variant per task, when to search it, what goes into the results file.

`LoraDropBase` stands before a harness model class in the bases of a backend and answers its three request types:

    requests of all tasks -> grouped by task -> the task's variant is given, or found on validation documents
    -> the task's own requests run under it, by the harness class -> answers back in the order they came

It knows no torch. A backend says how layers are kept and how a sweep runs (the methods at the end of the class).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec
from lm_eval.api.instance import Instance

from lm_eval_lora_drop import __version__
from lm_eval_lora_drop.backends.checks import check_before_loading, sweep_folder
from lm_eval_lora_drop.backends.evaluated import EvaluatedSplit, variants_beside
from lm_eval_lora_drop.backends.identity import decision, identity
from lm_eval_lora_drop.backends.identity.cache_guard import CacheGuard
from lm_eval_lora_drop.backends.state import Decision, RunState
from lm_eval_lora_drop.endings import on_interrupt
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.arguments import check_given_once, typed_model_args
from lm_eval_lora_drop.harness.documents import Binding, Document
from lm_eval_lora_drop.harness.task_index import running_evaluation
from lm_eval_lora_drop.options import LoraDropArgs
from lm_eval_lora_drop.record.answers import KeptAnswers
from lm_eval_lora_drop.record.choice import read_recorded
from lm_eval_lora_drop.record.events import Broadcast, Finished, Listener
from lm_eval_lora_drop.record.fingerprint import digest, library_versions
from lm_eval_lora_drop.record.schema import SCHEMA, AdapterRecord, BaseRecord, RunRecord, TaskRecord, to_entry
from lm_eval_lora_drop.sweep.backend import Pass, Peers
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.sweep.documents import binding_of
from lm_eval_lora_drop.sweep.run import in_step
from lm_eval_lora_drop.sweep.search import Search
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import AdapterShape, Variant

log = logger(__name__)


def _draws(request: Instance) -> bool:
    """Whether an answer depends on the run's random numbers, which no identity knows."""
    settings = request.args[1] if request.request_type == "generate_until" else {}
    return bool(settings.get("do_sample") or settings.get("temperature"))


class LoraDropBase(abc.ABC):
    """Answers requests with the LoRA of some decoder layers dropped; see the module's docstring."""

    args: LoraDropArgs
    shape: AdapterShape
    kept_answers: KeptAnswers | None = None
    """Where answers of the evaluated split are looked up and kept, for runs of one process; None: nowhere."""
    cache_hook: Any
    _identity: dict[str, Any] | None = None
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
        self._identity = None

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
        # The model may have been trained or edited since the last evaluation.
        self._identity = None
        if self.args.sweep_dry_run:
            self._dry_run([binding for binding in groups if binding is not None])
        # Every variant is settled before the first test document is answered.
        decisions = {binding: self._decide(binding) for binding in groups}
        answers: list[Any] = [None] * len(requests)
        for binding, indices in groups.items():
            mine = [requests[index] for index in indices]
            given = self._answer_with_others(mine, decisions[binding], disable_tqdm)
            if given is None:
                given = self._answer_or_recall(request_type, mine, decisions[binding].kept, disable_tqdm)
            for index, answer in zip(indices, given, strict=True):
                answers[index] = answer
        return answers

    def _answer_or_recall(
        self, request_type: str, requests: list[Instance], kept: Variant, disable_tqdm: bool
    ) -> list[Any]:
        if self.kept_answers is None or any(map(_draws, requests)):
            return self._answer(request_type, requests, kept, disable_tqdm)
        key = digest(
            *(self.fingerprint_parts(), str(kept), request_type),
            *(str(getattr(self, "device", "")), self.batch_size),
            *(library_versions(), __version__),
            [request.args for request in requests],
        )
        answers = self.kept_answers.get(key, len(requests))
        if answers is not None:
            log.info("%s answers under %s are reused from an earlier run", len(requests), kept.label)
            return answers
        answers = self._answer(request_type, requests, kept, disable_tqdm)
        self.kept_answers.put(key, answers)
        return answers

    # The test split under other variants too (`evaluate=`).

    def _split_of(self, decided: Decision) -> EvaluatedSplit | None:
        """The task's test split, where it is to be answered under more than what was chosen."""
        binding, named = decided.binding, self.args.evaluate
        if binding is None or decided.record is None:
            return None
        if named is None and self.args.spec.kind != "auto":
            return None
        others = variants_beside(decided.kept, named or ("full",), self.shape)
        found = self._state.splits.get(binding.name)
        if others and (found is None or found.binding is not binding):
            journal = self._search().journal_of_test_split(binding)
            asked_for = named is not None
            found = EvaluatedSplit(binding, decided.kept, others, journal, self.peers(), asked_for=asked_for)
            self._state.splits[binding.name] = found
        return found if others else None

    def _answer_with_others(self, requests: list[Instance], decided: Decision, disable_tqdm: bool) -> list[Any] | None:
        """The answers from one shared pass of all variants; None where that would not give the harness's own."""
        split = self._split_of(decided)
        if split is None or self.kept_answers is not None:
            return None
        if any(in_step(self.peers(), lambda: self._why_not_together(requests))):
            return None
        return split.answer_together(requests, self.prepare, self.cache_hook, quiet=disable_tqdm)

    def _answer_others(self) -> None:
        """Once the harness has all of the run's answers: those of the other variants, in step with all processes."""
        if self._state.answers is not None:
            # Where every answer came from the cache nobody has asked for the variant yet.
            for binding in self._state.bindings:
                self._decide(binding)
        for decided in list(self._state.decisions.values()):
            split = self._split_of(decided)
            if split is not None and not split.is_over:
                split.answer_others(self._prepare_evaluated)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """As the harness's, which calls it on every process when all answers are there."""
        if self.peers().world_size > 1:
            self._answer_others()
        return super().gather_object(obj, dst)  # type: ignore[misc]

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
            self._state.answers.remember(binding.name, record)
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
        self._identity = None
        if cache_hook.dbdict is not None:
            file = getattr(cache_hook.dbdict, "filename", "the file")
            self._state.answers = CacheGuard(cache_hook.dbdict, self._setting(), file)
        super().set_cache_hook(cache_hook)  # type: ignore[misc]

    def get_model_info(self) -> dict[str, Any]:
        """The harness's model information with our entry (`record.schema`)."""
        # Not every model class of the harness has something to tell (VLLM has not).
        info: dict[str, Any] = getattr(super(), "get_model_info", dict)()
        # Of several processes this is the first alone, and all of them have been here (`gather_object`).
        if self.peers().world_size == 1:
            self._answer_others()
        running = running_evaluation()
        record = self._run_record(self._state.report(saves_samples=running is not None and running.saves_samples))
        for name, task in record.tasks.items():
            log.debug(
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
        setting = {**self.fingerprint_parts(), **decision(self.args)}
        if self.args.spec.source is not None:
            # The file may say something else by the time the answers are read again.
            choices = read_recorded(self.args.spec.source).record.tasks
            setting["choices"] = {name: task.variant for name, task in choices.items()}
        if self.args.spec.needs_validation:
            setting["candidates"] = [str(variant) for variant in candidates_of(self.args, self.shape).variants]
        return setting

    def fingerprint_parts(self) -> Mapping[str, Any]:
        """What changes an answer, apart from the request and the variant (`identity`), as the model is in memory when
        an evaluation begins."""
        if self._identity is None:
            self._identity = identity(self.args, **self._parts_of_model())
        return self._identity

    # What a backend provides (see `sweep.backend.Backend`).

    def memory(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> str:  # noqa: ARG002
        """What a sweep would take of the memory, in words. A backend that takes all of it at the start needs none."""
        return "what the model takes already"

    def probe(self, pairs: Sequence[tuple[str, str]]) -> Any:  # noqa: ARG002
        """The probe of (prompt, reference) pairs. A backend that sees no layers has none.

        Raises:
            ArgumentError: here.
        """
        raise self._sees_no_layers("boundary=probe")

    def layer_scores(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:  # noqa: ARG002
        """Scores of the layers. A backend that sees no layers has none.

        Raises:
            ArgumentError: here.
        """
        raise self._sees_no_layers("sweep_candidates=scores")

    def _sees_no_layers(self, given: str) -> ArgumentError:
        return ArgumentError(
            f"{given} reads the model layer by layer, which {type(self).__name__} cannot. Use --model hf-lora-drop for "
            "it, or boundary=auto with other candidates."
        )

    def _why_not_together(self, requests: Sequence[Instance]) -> str | None:  # noqa: ARG002
        """Why a pass of all variants would not give the answers that `_answer` gives to requests of one type."""
        return "the harness alone gives its answers"

    def _prepare_evaluated(self, documents: Sequence[Document], variants: Sequence[Variant]) -> Pass:
        """How the evaluated split is answered under variants that were not chosen."""
        return self.prepare(documents, variants)

    @abc.abstractmethod
    def _parts_of_model(self) -> dict[str, Any]:
        """The backend's part of the identity: the keyword arguments of `identity`."""

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
