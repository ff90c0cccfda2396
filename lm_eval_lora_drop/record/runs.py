"""A run of `lm_eval`, its tasks and their logged documents, as `runs.find_runs` gives them.

What is wrong with a file is kept beside what could be read of it (`Issue`), so that the rest can still be shown.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord

_DOC_ID = re.compile(rb'\{"doc_id": (\d+), ')


_LONG_NUMBER = re.compile(r"[0-9]{19}")


@dataclass(frozen=True)
class Issue:
    """Something about a file that its reader must know: `message` is a whole sentence."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Score:
    """An aggregated metric of the results file; `stderr` is None where the harness had none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Sample:
    """One document under one filter, as logged.

    `outputs` are the filtered responses, `raw` the model's text before the filters (for multiple choice: the option
    with the highest log-likelihood), `metrics` the per-document values: numbers, or what a corpus metric sums up.
    """

    doc_id: int
    filter: str
    doc: Any
    prompt: str
    target: str
    raw: str
    outputs: tuple[Any, ...]
    metrics: Mapping[str, Any]
    doc_hash: str
    prompt_hash: str
    target_hash: str


@dataclass(frozen=True)
class Documents:
    """The scores of a task's documents under one filter, ascending by `doc_id`; texts are left on the disk.

    `metrics[name]` has one value per document. `identity[i]` are the hashes of document, prompt and target ("" where
    an old release logged none).
    """

    doc_ids: tuple[int, ...]
    identity: tuple[tuple[str, str, str], ...]
    metrics: Mapping[str, Sequence[Any]]


@dataclass
class TaskRun:
    """One task of one run. Samples are read when they are asked for."""

    run: Run
    name: str
    version: str
    scores: Mapping[tuple[str, str], Score]
    """Keyed by (metric, filter), in the order of the task's `metric_list`."""
    higher_is_better: Mapping[str, bool | None]
    num_fewshot: int | None
    documents_evaluated: int | None
    config: Mapping[str, Any]
    samples_path: Path | None
    issues: list[Issue] = field(default_factory=list)

    @property
    def record(self) -> TaskRecord | None:
        """What was kept for this task and how it was found, None in runs of other model types."""
        return self.run.record.tasks.get(self.name) if self.run.record else None

    @property
    def aggregations(self) -> Mapping[str, str]:
        """How each metric is aggregated, by name (`mean`, `bleu`) or, for an object, its printed form."""
        listed = self.config.get("metric_list")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        return {str(entry.get("metric")): str(entry.get("aggregation", "mean")) for entry in entries}

    @property
    def filters(self) -> list[str]:
        """The filters that were scored, in the order of the results file."""
        return list(dict.fromkeys(name for _, name in self.scores))

    @cached_property
    def documents(self) -> Mapping[str, Documents]:
        """Per filter, the scores of every logged document; empty where no samples were logged."""
        rows: dict[str, list[tuple[int, tuple[str, str, str], dict[str, Any]]]] = {}
        for row in self._rows(scores_only):
            # Hashes are shared between runs of a task, so interning keeps 500 runs small.
            identity = tuple(sys.intern(str(row.get(key, ""))) for key in ("doc_hash", "prompt_hash", "target_hash"))
            rows.setdefault(str(row.get("filter", "none")), []).append(
                (int(row["doc_id"]), identity, {name: row.get(name) for name in self._metric_names(row)})  # type: ignore[arg-type]
            )
        found = {}
        for name, entries in rows.items():
            entries.sort(key=lambda entry: entry[0])
            names = list(dict.fromkeys(metric for entry in entries for metric in entry[2]))
            found[name] = Documents(
                tuple(entry[0] for entry in entries),
                tuple(entry[1] for entry in entries),
                {metric: [entry[2].get(metric) for entry in entries] for metric in names},
            )
        self._count(found)
        return found

    def samples(self, filter_name: str | None = None) -> list[Sample]:
        """The logged documents with their texts, ascending by `doc_id`; of the first filter unless one is named."""
        wanted = filter_name if filter_name is not None else next(iter(self.filters), "none")
        found = [self._sample(row) for row in self._rows(_whole) if str(row.get("filter", "none")) == wanted]
        return sorted(found, key=lambda sample: sample.doc_id)

    def _sample(self, row: Mapping[str, Any]) -> Sample:
        arguments = _arguments(row.get("arguments"))
        return Sample(
            doc_id=int(row["doc_id"]),
            filter=str(row.get("filter", "none")),
            doc=row.get("doc"),
            prompt=str(arguments[0][0]) if arguments and arguments[0] else "",
            target=str(row.get("target", "")),
            raw=_raw_output(row.get("resps"), arguments),
            outputs=tuple(outputs) if isinstance(outputs := row.get("filtered_resps"), list) else (),
            metrics={name: row.get(name) for name in self._metric_names(row)},
            doc_hash=str(row.get("doc_hash", "")),
            prompt_hash=str(row.get("prompt_hash", "")),
            target_hash=str(row.get("target_hash", "")),
        )

    def _metric_names(self, row: Mapping[str, Any]) -> list[str]:
        listed = row.get("metrics")
        if isinstance(listed, list):
            return [str(name) for name in listed]
        # Releases before 0.4.9 did not list them.
        return [name for name in dict.fromkeys(metric for metric, _ in self.scores) if name in row]

    def _rows(self, parse: Callable[[bytes], dict[str, Any] | None]) -> Iterator[dict[str, Any]]:
        if self.samples_path is None:
            return
        try:
            with self.samples_path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    row = parse(line)
                    if row is None or not isinstance(row.get("doc_id"), int):
                        self._say(self.samples_path, f"line {number} is no logged document (torn or edited); left out.")
                        continue
                    yield row
        except OSError as error:
            self._say(self.samples_path, f"cannot be read ({error.strerror or error}).")

    def _count(self, found: Mapping[str, Documents]) -> None:
        logged = max((len(documents.doc_ids) for documents in found.values()), default=0)
        if self.samples_path is not None and self.documents_evaluated not in (None, logged):
            self._say(
                self.samples_path, f"holds {logged} documents, the results file counts {self.documents_evaluated}."
            )

    def _say(self, path: Path, message: str) -> None:
        issue = Issue(path, message)
        if issue not in self.issues:
            self.issues.append(issue)


@dataclass
class Run:
    """One results file."""

    path: Path
    date: str
    data: Mapping[str, Any]
    record: RunRecord | None = None
    """Our entry in the results file, None in runs of other model types."""
    tasks: dict[str, TaskRun] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)

    @property
    def config(self) -> Mapping[str, Any]:
        """The harness's record of the run's settings."""
        config = self.data.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def lm_eval_version(self) -> str:
        """The release that wrote the file, "" where it does not say."""
        return str(self.data.get("lm_eval_version") or "")

    @cached_property
    def model_args(self) -> Mapping[str, str]:
        """What was given as `--model_args`, as text."""
        given = self.config.get("model_args")
        if isinstance(given, dict):
            return {str(name): str(value) for name, value in given.items()}
        pairs = (part.partition("=") for part in str(given or "").split(",") if part)
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def model_type(self) -> str:
        """`hf`, `hf-lora-drop`, ..."""
        return str(self.config.get("model") or self.data.get("model_source") or "unknown")

    @cached_property
    def system(self) -> str:
        """A short name of what was evaluated: adapter or model, and for our runs how layers were kept."""
        args = self.model_args
        source = args.get("peft") or args.get("pretrained") or args.get("model") or self.data.get("model_name")
        name = Path(str(source or self.path.stem).rstrip("/")).name
        if self.record is None:
            return name
        kept = f"layers={args['layers']}" if "layers" in args else f"boundary={args.get('boundary', 'auto')}"
        return f"{name} {kept}"

    @property
    def all_issues(self) -> list[Issue]:
        """What was noticed about this file and its samples so far."""
        return [*self.issues, *(issue for task in self.tasks.values() for issue in task.issues)]


def scores_only(line: bytes) -> dict[str, Any] | None:
    """A logged document without its texts, several times faster than reading them.

    The harness writes `doc_id` first and everything after the texts from `filter` on. Inside a text the quotes would be
    escaped, so the last `"filter"` is the key; a line that is laid out otherwise is read whole.
    """
    head, start = _DOC_ID.match(line), line.rfind(b', "filter": "')
    if head and start > 0:
        row = json_object("{" + line[start + 2 :].decode("utf-8", "surrogateescape"))
        if row is not None and "metrics" in row and "doc_hash" in row:
            return {"doc_id": int(head[1]), **row}
    return _whole(line)


def _whole(line: bytes) -> dict[str, Any] | None:
    return json_object(line.decode("utf-8", "surrogateescape"))


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None."""
    try:
        # Integers of hundreds of digits overflow wherever they meet a float; looking for one is cheap, a hook is not.
        value = json.loads(text, parse_int=_integer) if _LONG_NUMBER.search(text) else json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 18 else float(digits)


def _arguments(logged: Any) -> list[list[Any]]:
    """`{"gen_args_0": {"arg_0": ..., "arg_1": ...}}` as a list per request; older releases logged lists."""
    if isinstance(logged, dict):
        return [list(args.values()) if isinstance(args, dict) else [args] for args in logged.values()]
    return [list(args) if isinstance(args, list) else [args] for args in (logged if isinstance(logged, list) else ())]


def _raw_output(resps: Any, arguments: Sequence[Sequence[Any]]) -> str:
    firsts = [_first(response) for response in (resps if isinstance(resps, list) else ())]
    pairs = [_log_likelihood(response) for response in firsts]
    if len(firsts) > 1 and all(value is not None for value in pairs) and len(arguments) == len(firsts):
        best = max(range(len(pairs)), key=lambda index: pairs[index] or float("-inf"))
        return str(arguments[best][1]) if len(arguments[best]) > 1 else ""
    if not firsts:
        return ""
    first = firsts[0]
    return first if isinstance(first, str) else json.dumps(first, ensure_ascii=False)


def _first(response: Any) -> Any:
    return response[0] if isinstance(response, list) and response else response


def _log_likelihood(response: Any) -> float | None:
    try:
        return float(response[0]) if isinstance(response, list) else None
    except (TypeError, ValueError, IndexError):
        return None
