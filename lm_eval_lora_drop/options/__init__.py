"""Every option that a user can set, declared once: model_args, settings of a training, keys of a study.

A declaration is a line of a dataclass: name, type with its range, and `option(default, sentence, example, unset)`. From
it come parsing, near matches, `--help`, docs/reference/model_args.md (tools/write_options.py) and the settings part of
an identity (`answer_changing`): a `neutral` option changes no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import _notations as notations
from lm_eval_lora_drop.options._declare import (
    Above0,
    AtLeast0,
    Natural,
    Positive,
    Reads,
    Share,
    Text,
    declared,
    option,
    read,
)
from lm_eval_lora_drop.options._notations import (
    ALL_LAYERS,
    CKA_LAYERS,
    PAPER_LAYERS,
    SELECTIONS,
    AlsoSpec,
    CandidateSpec,
)
from lm_eval_lora_drop.text import nearest, shown
from lm_eval_lora_drop.variant import LONGEST, VariantSpec

__all__ = [
    "ALL_LAYERS",
    "CKA_LAYERS",
    "PAPER_LAYERS",
    "SELECTIONS",
    "AlsoSpec",
    "AtLeast0",
    "CandidateSpec",
    "EvaluationOptions",
    "LoraDropArgs",
    "Reads",
    "StudyOptions",
    "StudyTaskOptions",
    "StudyTrainingOptions",
    "TrainingOptions",
    "answer_changing",
    "check_names",
    "declared",
    "neutral",
    "option",
    "parse_model_args",
    "read",
    "without_effect",
]


@dataclass(frozen=True)
class LoraDropArgs:
    """The model_args of hf-lora-drop and vllm-lora-drop that lm-eval's own models do not have."""

    boundary: notations.Boundary = option(
        VariantSpec("auto"), "how many bottom decoder layers keep their LoRA", "20", "auto", also=("k",)
    )
    layers: notations.Layers = option(None, "what is kept, as a variant; excludes boundary", "0-14+20")
    evaluate: notations.Evaluate = option(
        None,
        "what answers the test split: the choice, and for comparison the full adapter and the base model",
        "chosen+full+base",
        "chosen+full where boundary=auto and one shared pass answers both, else chosen",
        neutral=True,
    )
    sweep_candidates: notations.Candidates = option(
        CandidateSpec(("boundary",)),
        "what a sweep compares (docs/howto/other-candidates.md)",
        "upper+window",
        also=("family",),
    )
    sweep_boundaries: notations.Boundaries = option(None, "the candidates of boundary", "8-24:2", "every K in 0..L")
    sweep_limit: Positive = option(100, "number of validation documents", "100")
    sweep_metric: notations.Metric = option(
        None, "optimised metric; reference_loglikelihood needs no generation", "exact_match:strict", "the task's first"
    )
    sweep_strategy: Literal["exhaustive", "racing", "refine"] = option(
        "exhaustive", "racing stops scoring beaten candidates; refine scores every fourth, then those around the best"
    )
    sweep_select: notations.Select = option(
        None, "rule of the choice (docs/explanation/method.md)", "smallest:0.99", "smooth for boundaries, else best"
    )
    sweep_jointly: notations.Jointly = option(None, "one choice for all tasks of the run; true: mean", "worst", "false")
    sweep_also: notations.Also = option((), "other tasks to score the candidates on", "arc_easy:acc_norm", "none")
    sweep_task: Text | None = option(None, "searched on where the task has no documents of its own", "x.yaml", "none")
    sweep_dry_run: bool = option(False, "report documents, pairs, time and memory of the sweep, and stop", neutral=True)
    sweep_size: Natural | None = option(
        None, "layers in a set of `random`; candidates that `cma_es` may try", "12", "the default boundary; 150"
    )
    sweep_seed: Natural = option(0, "seed that draws and orders the validation documents", "0")
    sweep_engine: Literal["auto", "shared", "plain"] = option(
        "auto", "all candidates in one pass (shared), or one after another (plain)", neutral=True
    )
    sweep_batch_size: notations.OrAuto = option(
        None, "rows (candidate x document) in a batch of the shared pass", "64", "auto", neutral=True
    )
    sweep_dir: notations.Folder = option(
        None, "journal of the sweep, for resuming", "out/sweeps", "the user's cache folder", neutral=True
    )
    sweep_log: Literal["auto", "wandb", "trackio", "none"] = option("auto", "tracker of the sweep", neutral=True)
    merge: notations.Merge = option(
        False, "fold the kept LoRA into the weights for the test split; force: though little of it survives rounding"
    )

    @property
    def spec(self) -> VariantSpec:
        """What `boundary` or `layers` say."""
        return self.layers or self.boundary


@dataclass(frozen=True, kw_only=True)
class _HarnessArgs:
    """Arguments of lm-eval's own models that would fail only after the model is loaded."""

    backend: Literal["default", "causal"] = option("default", "encoder-decoder models have no boundary")
    batch_size: notations.BatchSize = option(1, "requests in a batch", "auto:4", neutral=True)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The settings of one training. Defaults are the paper's where it names them (arXiv 2503.23360: 3 epochs, rank 8,
    2,048 tokens, batch 16), else those of LLaMA-Factory's LoRA examples, with which the paper trained."""

    rank: Positive = option(8, "LoRA rank", "8")
    lora_alpha: AtLeast0 | None = option(None, "LoRA alpha", "16", "twice the rank")
    lora_dropout: Share = option(0.0, "LoRA dropout", "0.1")
    layers: notations.TrainedLayers = option(
        ALL_LAYERS,
        "decoder layers to train; paper: the bottom 20 of 32, scaled; cka:SHARE: those that change their states most",
        "cka:0.5",
    )
    target_modules: notations.Names = option((), "last parts of module names", "q_proj,v_proj", "all linear modules")
    epochs: Above0 = option(3.0, "passes over the documents", "3")
    batch_size: Positive = option(16, "documents per optimiser step, all processes together", "16")
    micro_batch_size: Positive | None = option(None, "documents at a time on one device", "4", "batch_size")
    learning_rate: Above0 = option(1e-4, "peak learning rate", "1e-4")
    weight_decay: AtLeast0 = option(0.0, "weight decay of AdamW", "0.01")
    warmup: Share = option(0.1, "share of the steps in which the learning rate rises", "0.1")
    schedule: Text = option("cosine", "learning-rate schedule, a name that Transformers knows", "linear")
    max_grad_norm: AtLeast0 = option(1.0, "norm that gradients are clipped to", "1.0")
    max_length: Annotated[int, Meta(ge=2, le=10**9)] = option(2048, "maximum tokens of prompt and answer", "2048")
    long: Literal["cut", "skip"] = option("cut", "longer documents: cut the prompt's beginning, or draw another one")
    gradient_checkpointing: bool = option(False, "less memory, a third more time", neutral=True)
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "of the base model; LoRA is trained in float32")
    seed: Natural = option(0, "seed of initial weights, order and dropout", "0")
    data_seed: Natural = option(0, "seed that draws the documents", "0")
    limit: Positive | None = option(None, "number of documents to draw", "1000", "all")
    hold_out: Natural = option(200, "documents left for a sweep that draws from the training split", "200")
    checkpoints: Positive = option(10, "number of intermediate checkpoints", "10")
    validation_limit: Natural = option(0, "validation documents whose loss is measured at each checkpoint", "100")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The keys of a study's file."""

    model_args: dict[str, Any] = option(MISSING, "of hf-lora-drop, without peft, boundary, layers", "{pretrained: m}")
    base_name: Text | None = option(None, "what the adapters call their base model", "org/base", "pretrained")
    output: Text | None = option(None, "folder of the study", "out/study", "--output")
    tasks: notations.Tasks = option(MISSING, "tasks, under the study's names for them", "[lora_drop_samsum]")
    trainings: dict[str, Any] = option({}, "trainings by name", "{full: {seeds: [0, 1, 2]}}", "none")
    adapters: notations.Texts = option((), "adapters that exist already, evaluated on every task", "[my/lora]", "none")
    choices: notations.Texts = option(("full", "base", "auto", "default"), "what is kept of an adapter", "[full, 20]")
    controls: Natural = option(
        0, "random sets of K layers beside each K of choices, and the upper K layers, as controls of equal size", "5"
    )
    metrics: notations.Texts = option((), "metrics that auto optimises in turn", "[rouge_l]", "the task's first")
    evaluation: dict[str, Any] = option({}, "options of lm_eval for all tasks", "{limit: 500}", "none")
    include_path: Text | None = option(None, "folder with further tasks", "my/tasks", "none")
    training_rate: Above0 | None = option(
        None,
        "documents per second, for the estimated time until a training has finished",
        "10",
        "unknown",
        neutral=True,
    )
    evaluation_rate: Above0 | None = option(
        None, "documents per second, for the estimated time until a cell has finished", "5", "unknown", neutral=True
    )


@dataclass(frozen=True, kw_only=True)
class StudyTaskOptions:
    """The keys of a task in a study's file."""

    task: Text | None = option(None, "name in lm_eval", "lora_drop_samsum", "the study's name")
    metadata: dict[str, Any] = option({}, "handed to the task", "{data_dir: data/samsum}", "none")
    training: dict[str, Any] = option({}, "settings of all trainings on it", "{limit: 5000}", "none")
    evaluation: dict[str, Any] = option({}, "options of lm_eval for it", "{batch_size: 16}", "none")
    metrics: notations.Texts = option((), "metrics that auto optimises in turn", "[rouge_l]", "the study's")


@dataclass(frozen=True, kw_only=True)
class StudyTrainingOptions:
    """The keys of a training in a study's file, beside its settings."""

    seeds: Annotated[tuple[Natural, ...], Meta(min_length=1)] = option((0,), "an adapter is trained for each", "[0, 1]")
    tasks: notations.Texts = option((), "tasks of the study to train on", "[samsum]", "all")
    choices: notations.Texts = option((), "what is kept of these adapters", "[full]", "the study's")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What a study hands to `lm_eval.simple_evaluate`."""

    limit: Positive | Above0 | None = option(None, "documents of a task, or a share of them below 1", "500", "all")
    num_fewshot: Natural | None = option(None, "examples in the prompt", "5", "the task's")
    batch_size: notations.BatchSize = option(1, "requests in a batch", "16", neutral=True)
    apply_chat_template: bool | Text = option(False, "as in lm_eval", "true")
    fewshot_as_multiturn: bool = option(False, "as in lm_eval", "true")
    system_instruction: Text | None = option(None, "as in lm_eval", "Be brief.", "none")
    gen_kwargs: notations.GenKwargs = option(None, "as in lm_eval", "max_gen_toks=64", "the task's")
    bootstrap_iters: Natural = option(100000, "as in lm_eval", "1000")
    device: Text | None = option(None, "where the model is", "cpu", "the first GPU", neutral=True)


def parse_model_args(model_args: Mapping[str, Any], known: Iterable[str]) -> tuple[LoraDropArgs, dict[str, Any]]:
    """Our arguments, and those that are left for the backend, which itself declares the names `known`.

    A name that is neither ours nor among them is refused where it looks like one of ours; any other goes on to
    `from_pretrained`, as with `--model hf`.

    Raises:
        ArgumentError: a value that is not allowed, a misspelt name, options that exclude each other.
    """
    ours = {name: value for name, value in model_args.items() if name in declared(LoraDropArgs)}
    rest = {name: value for name, value in model_args.items() if name not in ours}
    _refuse_unknown(rest, set(known))
    read({name: value for name, value in rest.items() if name in declared(_HarnessArgs)}, _HarnessArgs)
    for one, other, what in (
        ("boundary", "layers", "which layers are kept"),
        ("sweep_boundaries", "sweep_candidates", "what a sweep compares"),
    ):
        if {one, other} <= ours.keys() and None not in (ours[one], ours[other]) and ours[other] != "boundary":
            raise ArgumentError(
                f"{one} and {other} exclude each other, got {one}={shown(ours[one])} and {other}={shown(ours[other])}. "
                f"Leave one of them out: both say {what}."
            )
    args = LoraDropArgs(**read(ours, LoraDropArgs))
    if args.sweep_dry_run and args.spec.kind != "auto":
        raise ArgumentError(
            f"sweep_dry_run=true reports what a sweep would take, and only boundary=auto sweeps; got {args.spec}. "
            "Leave one of them out."
        )
    return args, rest


def _refuse_unknown(rest: Mapping[str, Any], known: set[str]) -> None:
    names = declared(LoraDropArgs)
    # `K`, `limit` and the like are our words too.
    words = {name.removeprefix("sweep_"): name for name in names}
    words |= {word: one.name for one in names.values() for word in one.also}
    for name, value in rest.items():
        if name in known:
            continue
        word = shown(name).lower().replace("-", "_")
        near = words.get(word) or nearest(word, [*names, *sorted(known)], cutoff=0.8)
        came = f"model_args has no argument {shown(name)!r} (got {shown(name)}={shown(value)})."
        if near or word.startswith("sweep_"):
            raise ArgumentError(came + (f" Did you mean {near}?" if near else f" There are: {', '.join(names)}."))
        if value == "":
            # What is left of `sweep_metric=name,filter` after the harness has split the text at its commas.
            raise ArgumentError(
                f"model_args: {shown(name)!r} came without a value. A comma separates model_args; to name the filter "
                f"of a metric, write sweep_metric=<metric>:<filter>."
            )


def check_names(model_args: Mapping[str, Any]) -> None:
    """Refuse model_args that name no base model or no adapter.

    Raises:
        ArgumentError: `pretrained` or the adapter is missing.
    """
    # False and 0 are how the harness reads pretrained=False: a value that names nothing.
    adapter = model_args.get("peft") or model_args.get("lora_local_path")
    for name, what, value in (
        ("pretrained", "the base model", model_args.get("pretrained")),
        ("peft", "the LoRA adapter whose layers are to be kept or dropped", adapter),
    ):
        if not value or "\0" in str(value):
            raise ArgumentError(
                f"{name} must name {what} (a folder or a Hub id), got {shown(value or 'none', LONGEST)}. Give "
                "--model_args pretrained=<base model>,peft=<adapter>, or use --model hf for a model without an adapter."
            )


def neutral(*tables: type) -> set[str]:
    """The options that change no answer: where things lie, and how fast they run."""
    return {name for name, one in declared(*tables).items() if one.neutral}


def without_effect(model_args: Mapping[str, Any], args: LoraDropArgs) -> tuple[str, ...]:
    """The options of a sweep that were given where nothing is swept; neutral ones and the seed may stand anywhere."""
    if args.spec.needs_validation:
        return ()
    passing = {*neutral(LoraDropArgs), "sweep_seed"}
    return tuple(name for name in model_args if name.startswith("sweep_") and name not in passing)


def answer_changing(args: LoraDropArgs) -> dict[str, Any]:
    """The options that change an answer, as JSON knows them: what belongs into the identity of what is kept."""
    names = [name for name in declared(LoraDropArgs) if name not in neutral(LoraDropArgs)]
    if not args.spec.needs_validation:
        names = [name for name in names if not name.startswith("sweep_")]
    values = {name: getattr(args, name) for name in names}
    return {name: one if isinstance(one, bool | int | None) else str(one) for name, one in values.items()}
