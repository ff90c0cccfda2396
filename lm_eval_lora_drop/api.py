"""Python and notebooks: run a sweep, or read one, and have its answer as an object.

    import lm_eval_lora_drop as lora_drop

    result = lora_drop.sweep("org/base", "./my-adapter", "gsm8k", sweep_limit=100)
    result                     # in a notebook: table, figure, verdict
    result["gsm8k"].boundary   # K
    result.to_pandas()         # a row per candidate
    result.export("./smaller-adapter")

`read` gives the same from what `lm_eval --output_path` has written; `compare`, `stability` and `report` are the
commands of these names. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable, write_atomically
from lm_eval_lora_drop.harness.evaluation import evaluate as run_evaluation
from lm_eval_lora_drop.harness.task_index import task_manager
from lm_eval_lora_drop.record.find import only_run, run_of
from lm_eval_lora_drop.record.schema import RunRecord, TaskRecord, from_config
from lm_eval_lora_drop.show.verdict.answer import EvaluatedScore, TaskVerdict, answers, evaluated_score
from lm_eval_lora_drop.variant import Variant

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from peft import PeftModel

    from lm_eval_lora_drop.adapter.card import Exported
    from lm_eval_lora_drop.show.report.comparison import SystemComparison
    from lm_eval_lora_drop.show.verdict.stability import Stability

COLUMNS = (
    *("task", "variant", "boundary", "kept_parameters", "metric", "score", "stderr", "documents"),
    *("difference", "difference_low", "difference_high", "eliminated_after", "chosen"),
)
"""Of a row of `TaskResult.rows` and of `to_pandas`: score and standard error on the validation documents, and the
paired difference to the full adapter on them with its simultaneous 95 % band, positive is better; None if unknown."""


@dataclass(frozen=True)
class TaskResult:
    """The answer of one task: what is kept, its test score, and how it was found."""

    name: str
    record: TaskRecord
    """The whole record: candidates with their items, documents, warnings."""
    test: EvaluatedScore | None
    """The score on the evaluated split."""
    run: RunRecord
    answer: TaskVerdict
    path: Path | None
    """The results file, None where the run was not saved."""
    results: Mapping[str, Any] = field(repr=False, compare=False)
    """What `lm_eval.simple_evaluate` returned, or the results file holds."""

    @property
    def variant(self) -> Variant:
        """What is kept of the adapter."""
        return self.record.kept

    @property
    def boundary(self) -> int | None:
        """K where the variant is a boundary, else None."""
        return self.record.boundary

    @property
    def score(self) -> float | None:
        """The score of what is kept on the test documents, None without one; `test` has its standard error."""
        return self.test.score.value if self.test else None

    @property
    def verdict(self) -> str:
        """What is kept, how much smaller it is, its difference to the full adapter."""
        return self.answer.verdict

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row (`COLUMNS`) for each candidate, from most kept to least; without a sweep one for what was kept."""
        from lm_eval_lora_drop.show.figures.sweep import gains_of

        record, sweep = self.record, self.record.sweep
        metric = str(record.metric) if record.metric else None
        if sweep is None:
            only = (self.name, record.variant, self.boundary, record.kept_parameters, metric, None, None, 0)
            return [dict(zip(COLUMNS, (*only, None, None, None, None, True), strict=True))]
        gains, found = gains_of(record), []
        for one in sweep.candidates:
            kept = Variant.parse(one.variant, record.num_layers)
            gain, parameters = gains.get(kept), record.candidate_parameters.get(one.variant)
            cells = (
                *(self.name, one.variant, kept.boundary, parameters, metric, one.score, one.stderr, one.documents),
                *((gain.value, gain.low, gain.high) if gain else (None, None, None)),
                *(one.eliminated_after, one.variant == sweep.chosen),
            )
            found.append(dict(zip(COLUMNS, cells, strict=True)))
        return found

    def to_pandas(self) -> pd.DataFrame:
        """`rows` as a data frame.

        Raises:
            ArgumentError: pandas is not installed.
        """
        return _frame(self.rows)

    def plot(self) -> Figure:
        """The metric over the candidates, with one standard error.

        Raises:
            ArgumentError: the task had no sweep.
        """
        from lm_eval_lora_drop.show.figures.candidates import figure_of

        return figure_of(self.name, self.record, self.run)

    def export(
        self,
        destination: str | Path,
        *,
        adapter: str | Path | None = None,
        merge: bool = False,
        dtype: str = "auto",
        force: bool = False,
    ) -> Exported:
        """Write what was kept to the new folder `destination`: a PEFT adapter, or with `merge` the base model with it
        folded in.

        Args:
            destination: a folder that does not exist.
            adapter: the full adapter's folder or Hub id, if it is no longer where the run had it.
            merge: write a model in place of an adapter.
            dtype: of a merged model's weights.
            force: merge although the weights hold less than half of the LoRA (`lora-drop export --merge --force`).

        Raises:
            ArgumentError: `destination` exists, nothing would be left, the run had a loaded model and no files,
                `adapter` is another adapter than the run's, or a merge would lose most of the LoRA.
            AdapterError: no LoRA adapter.
        """
        from lm_eval_lora_drop.adapter.export import adapter_of_choice, export_adapter
        from lm_eval_lora_drop.show.model_card import card_results, origin_of

        source, kept = adapter_of_choice(self.run.adapter, self.variant, adapter, "adapter=...")
        evaluated = card_results(run_of(dict(self.results), self.path or Path("results.json")), self.name)
        said: dict[str, Any] = {"origin": origin_of(self.name, self.record, self.path), "evaluated": evaluated}
        if merge:
            from lm_eval_lora_drop.adapter.merge import merge_adapter
            from lm_eval_lora_drop.show.figures.survival import save_survival_figure

            drawn: dict[str, Any] = {"to_force": "force=True", "draw": save_survival_figure}
            return merge_adapter(source, kept, Path(destination), dtype=dtype, force=force, **drawn, **said)
        return export_adapter(source, kept, Path(destination), **said)

    def __repr__(self) -> str:
        return f"TaskResult({self.name!r}, {self.variant.label}: {self.verdict})"

    def _repr_html_(self) -> str:
        heads, columns = zip(*self.answer.columns, strict=True)
        head = "".join(f"<th>{escape(text).replace(chr(10), '<br>')}</th>" for text in heads)
        bold = ' style="font-weight:bold"'
        body = "".join(
            f"<tr{bold if row.is_chosen else ''}>" + "".join(f"<td>{escape(text)}</td>" for text in line) + "</tr>"
            for row, line in zip(self.answer.rows, zip(*columns, strict=True), strict=True)
        )
        notes = "".join(f"<p><em>{escape(one)}</em></p>" for one in self.answer.remarks)
        figure = ""
        if self.record.sweep is not None:
            from lm_eval_lora_drop.show.figures.style import image_element

            figure = image_element(self.plot(), alt=f"Scores of {self.name} by what is kept. {self.verdict}")
        return (
            f"<h4>{escape(self.name)}</h4><p><strong>{escape(self.verdict)}</strong></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}{figure}"
        )


class Result(Mapping[str, TaskResult]):
    """The tasks of one run, by name. With one task it has the properties and methods of that `TaskResult` too."""

    def __init__(self, tasks: Mapping[str, TaskResult], run: RunRecord, path: Path | None) -> None:
        self._tasks = dict(tasks)
        self.run = run
        self.path = path

    def __getitem__(self, name: str) -> TaskResult:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def only(self) -> TaskResult:
        """The task of a run that had one.

        Raises:
            ArgumentError: there are several.
        """
        if len(self._tasks) != 1:
            names = ", ".join(list(self._tasks)[:5])
            raise ArgumentError(f"this run has {len(self)} tasks ({names}). Name one: result[{next(iter(self))!r}].")
        return next(iter(self._tasks.values()))

    def __getattr__(self, name: str) -> Any:
        """Everything that a `TaskResult` has, of the only task."""
        if name.startswith("_") or not (hasattr(TaskResult, name) or name in TaskResult.__dataclass_fields__):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.only, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *TaskResult.__dataclass_fields__, *dir(TaskResult)})

    def to_pandas(self) -> pd.DataFrame:
        """The candidates of all tasks, a row each (`COLUMNS`).

        Raises:
            ArgumentError: pandas is not installed.
        """
        return _frame([row for task in self.values() for row in task.rows])

    def __repr__(self) -> str:
        return f"Result({', '.join(f'{name}: {task.variant.label}' for name, task in self.items())})"

    def _repr_html_(self) -> str:
        return "".join(task._repr_html_() for task in self.values())


def sweep(
    model: str | PeftModel,
    adapter: str | Path | None = None,
    task: str | list[str] = "",
    *,
    limit: float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool | str = False,
    include_path: str | Path | None = None,
    output_path: str | Path | None = None,
    evaluation: Mapping[str, Any] | None = None,
    **model_args: Any,
) -> Result:
    """Find on validation documents which part of the adapter a task needs, then evaluate its test documents with it.

    The same as `lm_eval --model hf-lora-drop --model_args pretrained=MODEL,peft=ADAPTER,... --tasks TASK`.

    Args:
        model: the base model's folder or Hub id, or a loaded `PeftModel` (then no `adapter`).
        adapter: the LoRA adapter's folder or Hub id.
        task: the name of a task or several.
        limit: number of test documents of each task; None for all. (`sweep_limit` is that of validation documents.)
        num_fewshot: examples in the prompt; None for the task's own number.
        apply_chat_template: whether, or which of the tokenizer's chat templates.
        include_path: a folder with task files of your own.
        output_path: a folder to save results file and samples to, as `lm_eval --output_path ... --log_samples` does.
        evaluation: further arguments of `lm_eval.simple_evaluate`.
        **model_args: those of `hf-lora-drop` (`sweep_limit`, `evaluate`, `boundary`, ...) and of lm-eval's `hf`
            (`dtype`, `device`, `batch_size`, ...).

    Raises:
        ArgumentError: an argument that cannot be used as given.
        AdapterError: no LoRA adapter, or one that does not fit the base model.
    """
    tasks = [task] if isinstance(task, str) else list(task)
    if not all(tasks) or not tasks:
        raise ArgumentError(
            "task must name an lm-eval task, or be a list of them, got none. `lm-eval ls tasks` lists them."
        )
    if output_path is not None:
        path = Path(output_path)
        check_writable(path.parent if path.suffix == ".json" else path, "output_path")
    from lm_eval_lora_drop.backends.hf import LoraDropLM

    # The default of lm-eval's command line: the first GPU, or what there is. That of its class insists on a GPU.
    given = {"boundary": "auto", "device": "cuda:0", **model_args}
    lm = LoraDropLM(pretrained=model, peft=None if adapter is None else str(adapter), **given)
    further = dict(evaluation or {})
    if "task_manager" not in further:
        further["task_manager"] = task_manager(tasks, include_path)
    found = run_evaluation(
        lm,
        None if output_path is None else Path(output_path),
        tasks=tasks,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        **further,
    )
    if found is None:
        raise ArgumentError("the result is on the first process only. Ask there, or use lm_eval on the command line.")
    return from_results(*found)


def read(path: str | Path) -> Result:
    """What a run of `hf-lora-drop` found, from its results file, or from the folder with that one file.

    Raises:
        ArgumentError: no such file, several, one that is damaged, or one of another model type.
    """
    run = only_run(Path(path).expanduser())
    return from_results(run.data, run.path)


def from_results(results: Mapping[str, Any], path: Path | None = None) -> Result:
    """The same of what `lm_eval.simple_evaluate` has returned.

    Raises:
        ArgumentError: it was not a run of `hf-lora-drop`.
    """
    record = from_config(results.get("config") or {}, path or "the results")
    if record is None:
        raise ArgumentError("these are results of another model type. Evaluate with model hf-lora-drop.")
    tasks = {}
    for said, (name, task) in zip(answers(results, record), record.tasks.items(), strict=True):
        tasks[name] = TaskResult(name, task, evaluated_score(results, name, task), record, said, path, results)
    return Result(tasks, record, path)


def compare(
    *systems: str | Path, metrics: Sequence[str] = (), resamples: int = 9999, seed: int = 0, show: int = 5
) -> SystemComparison:
    """Paired tests between runs over the same documents; `print` shows the tables of `lora-drop compare`.

    Args:
        *systems: two or more results files, or folders of one system, as `[LABEL=]PATH`; the first is the baseline.
        metrics: test these only.
        resamples: permutations, where not all are tried.
        seed: of the permutations.
        show: number of documents with the largest losses to list.

    Raises:
        ArgumentError: a path without a run, or runs that cannot be compared.
    """
    from lm_eval_lora_drop.show.report.compare import compare_paths

    paths = [str(one) for one in systems]
    return compare_paths(paths, metrics=metrics, resamples=resamples, seed=seed, show=show)[0]


def stability(
    *paths: str | Path, tasks: Sequence[str] = (), sizes: Sequence[int] | None = None, seed: int = 0
) -> list[Stability]:
    """How sure the choice of every sweep below `paths` is; `print(*found)` shows what `lora-drop stability` prints.

    Args:
        *paths: results files, or folders.
        tasks: these only.
        sizes: of the random subsets of the validation documents; None for 10, 20, 50, 100, ...
        seed: of the resampling.

    Raises:
        ArgumentError: no sweep there, or too few documents.
    """
    from lm_eval_lora_drop.show.verdict.stability import stabilities

    return stabilities([Path(path) for path in paths], tasks, sizes, seed)[0]


def report(*paths: str | Path, output: str | Path, baseline: str | None = None, **options: Any) -> Path:
    """Write one HTML page of all runs below `paths` to the file `output`, and return its path.

    Args:
        *paths: results files, or folders.
        output: the page.
        baseline: (part of) the name of the system the others are compared with; None for the full adapter.
        **options: `title`, `documents` (shown side by side for each pair of systems), `seed`.

    Raises:
        ArgumentError: nothing readable, an unknown baseline, or a file that is one of a run.
    """
    from lm_eval_lora_drop.record.find import kind_of_file
    from lm_eval_lora_drop.show.report.page import write_report

    path = Path(output)
    if kind := kind_of_file(path):
        raise ArgumentError(f"output={path} is {kind}, and writing there would destroy it. Name another file.")
    page, _ = write_report([Path(one) for one in paths], baseline=baseline, **options)
    write_atomically(path, page)
    return path


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError:
        raise ArgumentError(
            "to_pandas needs pandas, which is not installed. Use `rows`, or pip install pandas."
        ) from None
    return pd.DataFrame(rows, columns=list(COLUMNS))
