"""What a study's report says, as headings, sentences and tables; `pages` writes them as HTML, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.show.report.outputs import contains
from lm_eval_lora_drop.statistics.crossed import CrossedMean
from lm_eval_lora_drop.study.claims import Claim
from lm_eval_lora_drop.study.config import Study, StudyTask
from lm_eval_lora_drop.study.evidence import SHAPE, Arm, mean_of
from lm_eval_lora_drop.study.seeds import has_curves
from lm_eval_lora_drop.sweep.recorded import RecordedSweep
from lm_eval_lora_drop.sweep.trust import trust
from lm_eval_lora_drop.text import NOTHING, decimals_for, decimals_of_column, number, p_value, percent, with_error


@dataclass(frozen=True)
class Section:
    """`table` is a head and its rows, all text; `figure` the stem of an image beside the page, and what it shows."""

    title: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    figure: tuple[str, str] | None = None


CLAIMS_FIGURE, SEEDS_FIGURE = "claims", "seeds"
PUBLISHED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "lora_drop_hotpotqa": {"contains_em": ("73.1", "73.0", "74.1"), "f1": ("80.4", "79.9", "80.3")},
    "lora_drop_gsm8k": {"exact_match": ("73.1", "73.9", "74.3")},
    "lora_drop_samsum": {"rouge_l": ("38.2", "37.7", "38.1")},
    "paper_wmt23": {"bleu": ("33.0", "33.3", "35.8")},
    "paper_ecommerce": {"acc": ("68.6", NOTHING, "69.8")},
}
"""arXiv 2503.23360, Llama-3.1-8B-Instruct: fine-tuned, partially fine-tuned (bottom 20 of 32 layers trained), dropped;
its exact match is the share of answers that contain the label. By the names of tasks in configs/studies/paper.yaml."""


def sections(study: Study, arms: Sequence[Arm], claims: Sequence[Claim], failed: Sequence[str] = ()) -> list[Section]:
    """All sections of the report."""
    found = [_headline(claims, failed), *(_scores(task, arms) for task in study.tasks)]
    if claims:
        found.append(_claims(claims))
    found += [_boundaries(arms), _outputs(arms), _published(study)]
    return [section for section in found if section is not None]


def _headline(claims: Sequence[Claim], failed: Sequence[str]) -> Section:
    said = [_answer(claim) for claim in claims if _is_the_question(claim)]
    if not said:
        said = [
            "No comparison yet: no cell with a part of an adapter and one with the full adapter have both finished."
        ]
    said += [f"Not run: {sentence}" for sentence in failed]
    return Section("Does dropping help?", tuple(said))


def _answer(claim: Claim) -> str:
    if claim.p_holm is None:
        return f"{claim.task.name}, {claim.ours.name}: {claim.verdict}."
    return f"{claim.task.name}: {claim.statement}: {claim.verdict}."


def _is_the_question(claim: Claim) -> bool:
    """Whether a part of an adapter, however it was chosen, stands against the whole of the same training."""
    return claim.is_first and claim.theirs.choice == "full" and claim.ours.training == claim.theirs.training


def _scores(task: StudyTask, arms: Sequence[Arm]) -> Section | None:
    mine = [arm for arm in arms if arm.task.name == task.name]
    if not mine:
        return None
    metrics = mine[0].compared
    columns = []
    for metric in metrics:
        means = [_mean(arm, metric) for arm in mine]
        places = decimals_of_column((mean.value, mean.stderr) for mean in means if mean is not None)
        columns.append([NOTHING if mean is None else with_error(mean.value, mean.stderr, places) for mean in means])
    rows = [
        [arm.training or "base model", arm.choice, str(len(arm.seeds)), _kept(arm), *cells]
        for arm, *cells in zip(mine, *columns, strict=True)
    ]
    documents = len(next(iter(mine[0].runs[0].documents.values())).doc_ids)
    return Section(
        f"Scores on {task.name}",
        (
            f"Task {task.task}, {documents} test documents. ± is the standard error over documents and seeds; with "
            "one seed over documents alone. With several seeds they are assumed to be normally distributed. A row of "
            "random layers is the mean over several sets, drawn anew for each seed.",
        ),
        (["training", "kept", "seeds", "adapter parameters", *(mine[0].label(key) for key in metrics)], rows),
    )


def _mean(arm: Arm, metric: tuple[str, str]) -> CrossedMean | None:
    try:
        return mean_of(arm.values(*metric), arm.clusters(metric[1]))
    except ArgumentError:  # an aggregation that is no mean: the score has no such error
        return None


def _kept(arm: Arm) -> str:
    counts = [record.kept_parameters for record in arm.records]
    if not counts:
        return NOTHING
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _claims(claims: Sequence[Claim]) -> Section:
    tests = sum(claim.p_holm is not None for claim in claims)
    rows = []
    for claim in claims:
        mean, places = claim.mean, decimals_for(claim.mean.stderr, claim.mean.value)
        low, high = (number(limit, places, sign=True) for limit in mean.interval)
        rows.append(
            [
                claim.task.name, claim.statement, claim.metric, number(mean.value, places, sign=True),
                f"{low} to {high}" if claim.p_holm is not None else NOTHING, str(mean.seeds),
                p_value(claim.p_holm) or NOTHING, claim.verdict,
            ]
        )  # fmt: skip
    return Section(
        "Claims",
        (
            "Paired differences over the same documents and seeds, positive if the claim is right, with 95 % intervals "
            "over documents and seeds (two-way random effects; with one seed over documents alone). p-values are "
            f"corrected for all {tests} comparisons of this study (Holm); intervals are not corrected. Seeds are "
            "assumed to be normally distributed: where one training in ten collapses, the interval misses the true "
            "value in 4 to 75 % of studies, the deeper the collapse the more often; the figure shows each seed.",
        ),
        (["task", "claim", "metric", "difference", "95 % interval", "seeds", "p", "verdict"], rows),
        (CLAIMS_FIGURE, "Difference of every claim with its 95 % interval, and that of each seed"),
    )


def _boundaries(arms: Sequence[Arm]) -> Section | None:
    curves = any(map(has_curves, arms))
    rows = []
    for arm in arms:
        if not arm.choice.startswith(("auto", "probe")):
            continue
        chosen = [record.boundary for record in arm.records]
        again = [_chosen_again(record_index, arm) for record_index in range(len(arm.records))]
        layers = arm.records[0].num_layers
        known = [boundary for boundary in chosen if boundary is not None]
        rows.append(
            [
                arm.task.name, arm.training, arm.choice,
                " ".join(NOTHING if one is None else str(one) for one in chosen),
                _range(known, layers),
                ", ".join(text for _, text in again), ", ".join(share for share, _ in again),
            ]
        )  # fmt: skip
    if not rows:
        return None
    return Section(
        "Is the boundary stable?",
        (
            "K of the sweep (auto) and of the probe, for each seed. The last two columns show the variation from the "
            "validation documents alone: the range of 90 % of the sweep's choices on resampled documents, and the "
            "share of identical choices.",
        ),
        (["task", "training", "choice", "K by seed", "over seeds", "K on resampled documents", "same choice"], rows),
        (SEEDS_FIGURE, "Paired difference to the full adapter over K, a line for each seed") if curves else None,
    )


def _range(boundaries: Sequence[int], layers: int) -> str:
    if not boundaries:
        return NOTHING
    low, high = min(boundaries), max(boundaries)
    return f"{low} of {layers}" if low == high else f"{low} to {high} of {layers}"


def _chosen_again(place: int, arm: Arm) -> tuple[str, str]:
    try:
        shares = trust(RecordedSweep.from_record(arm.records[place])).choice_share
    except ArgumentError:
        return NOTHING, NOTHING
    same = shares.get(arm.records[place].kept, 0.0)
    boundaries = sorted((one.boundary, share) for one, share in shares.items() if one.boundary is not None)
    if not boundaries:
        return percent(same), NOTHING
    cumulated = np.cumsum([share for _, share in boundaries])
    low = boundaries[int(np.searchsorted(cumulated, 0.05))][0]
    high = boundaries[min(int(np.searchsorted(cumulated, 0.95)), len(boundaries) - 1)][0]
    return percent(same), f"{low} to {high}"


def _outputs(arms: Sequence[Arm]) -> Section | None:
    """Verbosity, format errors and containment: whether a lost point is lost content (the paper's section 6.7)."""
    rows = []
    for arm in arms:
        if arm.control is not None:
            continue
        whole = next(
            (one for one in arms if (one.task, one.training, one.choice) == (arm.task, arm.training, "full")), None
        )
        metric, filter_name = arm.metrics[0]
        worse, kept, reference = _containment(arm, whole, metric, filter_name)
        rows.append([arm.task.name, arm.name, *_shape(arm), worse, kept, reference])
    if not rows:
        return None
    return Section(
        "What the outputs look like",
        (
            "Mean length in words (or characters), and the share of answers that are cut off, empty or unread by the "
            "task. Then the documents on which a part scores lower than its full adapter, and the share of these "
            "answers that contain the full adapter's answer, or the reference: there form was lost, not content.",
        ),
        (
            [
                "task", "system", "length", "cut off", "empty", "unread", "scores lower on",
                "contain full's answer", "contain the reference",
            ],
            rows,
        ),
    )  # fmt: skip


def _shape(arm: Arm) -> list[str]:
    names = dict(arm.metrics)

    def mean(metric: str) -> float:
        return float(np.mean([run.scores[metric, names[metric]].value for run in arm.runs]))

    words, characters, *shares = SHAPE
    length = next((number(mean(name), 1) for name in (words, characters) if name in names), NOTHING)
    return [length, *(percent(mean(name)) if name in names else NOTHING for name in shares)]


def _containment(arm: Arm, whole: Arm | None, metric: str, filter_name: str) -> tuple[str, str, str]:
    seeds = [seed for seed in arm.seeds if whole is not None and seed in whole.seeds]
    if whole is None or arm.choice == "full" or not seeds:
        return NOTHING, NOTHING, NOTHING
    sign = -1 if arm.higher_is_better(metric) is False else 1
    try:
        lost = sign * (whole.of(seeds).values(metric, filter_name) - arm.of(seeds).values(metric, filter_name)) > 0
    except ArgumentError:
        return NOTHING, NOTHING, NOTHING
    pairs = [
        (mine, theirs)
        for row, ours, others in zip(
            lost, arm.of(seeds).samples(filter_name), whole.of(seeds).samples(filter_name), strict=True
        )
        for is_lost, mine, theirs in zip(row, ours, others, strict=True)
        if is_lost
    ]
    if not pairs:
        return f"0 of {lost.size}", NOTHING, NOTHING
    kept = sum(contains(mine.raw, theirs.raw) for mine, theirs in pairs) / len(pairs)
    reference = sum(contains(mine.raw, mine.target) for mine, _ in pairs) / len(pairs)
    return f"{len(pairs)} of {lost.size}", percent(kept), percent(reference)


def _published(study: Study) -> Section | None:
    rows = [
        [task.name, metric, *values] for task in study.tasks for metric, values in PUBLISHED.get(task.task, {}).items()
    ]
    if not rows:
        return None
    return Section(
        "What the paper printed",
        (
            "arXiv 2503.23360, Llama-3.1-8B-Instruct. One seed, no intervals. Partially fine-tuned is another "
            "training, with LoRA on the bottom 20 of 32 layers; its exact match counts answers that contain the label.",
        ),
        (["task", "metric", "fine-tuned", "partially fine-tuned", "upper layers dropped"], rows),
    )
