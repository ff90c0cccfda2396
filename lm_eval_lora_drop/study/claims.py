"""What a study can decide, task by task: each claim two arms, their paired difference, and a verdict in words.

The claims are the questions that the paper (arXiv 2503.23360) leaves open: does dropping help at all, by which choice;
are the bottom layers better than as many others; would training fewer layers in the first place do the same; is it more
than regularisation. Each is tested on every metric of its task. All p-values of a study are corrected together
(Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.statistics.crossed import CrossedMean
from lm_eval_lora_drop.statistics.significance import LEVEL, holm
from lm_eval_lora_drop.study.config import Study, StudyTask
from lm_eval_lora_drop.study.evidence import Arm, mean_of
from lm_eval_lora_drop.text import decimals_for, number
from lm_eval_lora_drop.train.settings import TrainingSettings

Outcome = Literal["holds", "worse", "open"]
_REGULARISED = ("lora_dropout", "weight_decay")


@dataclass(frozen=True)
class Claim:
    """`statement` says that `ours` is better than `theirs`; `mean` is how much better, positive is better.

    `p_holm` is corrected over all claims of the study; None where both arms are the same, because a search kept the
    full adapter under every seed. `metric` is what tables call it, `key` the metric and its filter; `is_first`: whether
    it is the task's first, the one that is optimised.
    """

    task: StudyTask
    statement: str
    ours: Arm
    theirs: Arm
    metric: str
    mean: CrossedMean
    p_holm: float | None
    is_first: bool = True
    key: tuple[str, str] = ("", "")

    @property
    def outcome(self) -> Outcome:
        """Whether the claim holds, its opposite does, or neither is significant."""
        if self.p_holm is None or self.p_holm >= LEVEL or self.mean.value == 0:
            return "open"
        return "holds" if self.mean.value > 0 else "worse"

    @property
    def verdict(self) -> str:
        """A sentence, with what it rests on."""
        if self.p_holm is None:
            seeds = " under every seed" if self.mean.seeds > 1 else ""
            return f"full adapter kept{seeds}: nothing to test"
        places = decimals_for(self.mean.stderr, self.mean.value)
        low, high = (number(limit, places, sign=True) for limit in self.mean.interval)
        seeds = f"{self.mean.seeds} seeds" if self.mean.seeds > 1 else "1 seed, another may differ"
        rests = f"{self.mean.documents} documents, {seeds}"
        match self.outcome:
            case "holds":
                said = f"holds ({rests})"
            case "worse":
                said = f"does not hold, worse ({rests})"
            case _ if self.mean.interval[0] > 0 or self.mean.interval[1] < 0:
                alone = "better" if self.mean.value > 0 else "worse"
                said = (
                    f"not significant after correction for all comparisons, alone {alone} (95 % CI {low} to {high}; "
                    f"{rests})"
                )
            case _:
                said = f"inconclusive (95 % CI {low} to {high}; {rests})"
        return said + self._apart()

    def _apart(self) -> str:
        """What has to be said of a seed that is unlike the others."""
        if self.mean.apart is None:
            return ""
        places = decimals_for(self.mean.stderr, self.mean.value)
        means = [number(one, places, sign=True) for one in self.mean.of_seeds]
        one = means.pop(self.mean.apart)
        seed = self.ours.seeds[self.mean.apart]
        return (
            f". Seed {seed} lies apart ({one}; the others {', '.join(means)}): the interval assumes normally "
            "distributed seeds and does not hold; look at that training or train more seeds"
        )


def claims(study: Study, arms: Sequence[Arm]) -> tuple[Claim, ...]:
    """All claims that the finished cells speak to, in the order of the study's tasks.

    Raises:
        ArgumentError: a task's first metric is neither a mean nor a corpus metric that can be rebuilt.
    """
    found: list[Claim] = []
    for task in study.tasks:
        pairs = []
        for statement, ours, theirs in _pairs(study, [arm for arm in arms if arm.task.name == task.name]):
            if shared := [seed for seed in ours.seeds if seed in theirs.seeds]:
                pairs.append((statement, ours.of(shared), theirs.of(shared)))
        # One metric after another: the questions of one metric stand together.
        for place, key in enumerate(pairs[0][1].compared if pairs else ()):
            for statement, ours, theirs in pairs:
                if key not in ours.metrics or key not in theirs.metrics:
                    continue
                try:
                    mean = difference(ours, theirs, key)
                except ArgumentError:
                    if place == 0:
                        raise
                    continue  # an aggregation that is no mean, or no document with a value
                metric = ours.label(key)
                found.append(Claim(task, statement, ours, theirs, metric, mean, mean.p_value, place == 0, key))
    tested = [not _is_same(claim.ours, claim.theirs) for claim in found]
    adjusted = iter(holm([claim.mean.p_value for claim, one in zip(found, tested, strict=True) if one]))
    return tuple(
        replace(claim, p_holm=next(adjusted) if one else None) for claim, one in zip(found, tested, strict=True)
    )


def _is_same(ours: Arm, theirs: Arm) -> bool:
    """Whether both are the same full adapters."""
    return ours.training == theirs.training and all(record.kept.is_full for record in ours.records + theirs.records)


def _pairs(study: Study, arms: Sequence[Arm]) -> list[tuple[str, Arm, Arm]]:
    settings = {one.name: one.settings for one in study.trainings if arms and one.task.name == arms[0].task.name}
    pairs = []
    wholes = [arm for arm in arms if arm.choice == "full"]
    base = next((arm for arm in arms if arm.choice == "base"), None)
    for whole in wholes:
        if base is not None and whole.training == wholes[0].training:
            # The base model answers the same whatever seed an adapter has.
            repeated = replace(base, of_runs=whole.seeds, runs=base.runs * len(whole.seeds))
            pairs.append((f"training ({whole.training}) helps the base model", whole, repeated))
        pairs += [
            (f"{_said(arm.choice)} is better than the full adapter ({arm.training})", arm, whole)
            for arm in arms
            if arm.training == whole.training and arm.choice != "full" and arm.control is None
        ]
        pairs += [
            (f"{_said(arm.choice)} is better than {_said(control.choice)} ({arm.training})", arm, control)
            for arm in arms
            for control in arms
            if arm.training == control.training == whole.training and _is_control_of(control, arm)
        ]
    if not wholes:
        return pairs
    main = wholes[0]
    mine = [arm for arm in arms if arm.training == main.training and arm.control is None]
    dropped = next((arm for arm in mine if arm.choice not in ("full", "base")), None)
    for rival in wholes[1:]:
        kind = _kind(settings.get(main.training), settings.get(rival.training))
        if kind is None:
            continue
        pairs.append((f"{kind} ({rival.training}) is better than the plain training", rival, main))
        if dropped is not None:
            pairs.append((f"{_said(dropped.choice)} is better than {kind} ({rival.training})", dropped, rival))
        equal = next((arm for arm in mine if arm.choice != "full" and _keeps_as_much(arm, rival)), None)
        if equal is not None and equal is not dropped:
            pairs.append(
                (f"{_said(equal.choice)} is better than {kind} ({rival.training}), which is as large", equal, rival)
            )
    return pairs


def _said(choice: str) -> str:
    words = {
        "auto": "the sweep's choice",
        "default": "the paper's default K",
        "probe": "the probe's K",
    }
    if choice.isdigit():
        return f"K = {choice}"
    if choice.startswith(("upper ", "random ")):
        return f"the {choice}" if choice.startswith("upper") else f"{choice.replace('random', 'random sets of')}"
    candidates = choice.removeprefix("sweep_candidates=")
    if candidates != choice:
        return f"the choice of a sweep over {candidates}"
    return words.get(choice, choice)


def _kind(main: TrainingSettings | None, other: TrainingSettings | None) -> str | None:
    """What the other training does in place of dropping, None where it is no rival of it."""
    if main is None or other is None:
        return None
    if other.layers != main.layers:
        return "training fewer layers"
    if any(getattr(other, name) > getattr(main, name) for name in _REGULARISED):
        return "regularising the training"
    return None


def _is_control_of(control: Arm, arm: Arm) -> bool:
    """Whether a control keeps as many layers as an arm with a fixed K, and as many parameters."""
    fixed = arm.choice == "default" or arm.choice.isdigit()
    return fixed and control.control == arm.records[0].boundary and _keeps_as_much(arm, control)


def _keeps_as_much(arm: Arm, rival: Arm) -> bool:
    def kept(one: Arm) -> set[int | None]:
        return {record.kept_parameters for record in one.records}

    return kept(arm) == kept(rival) and len(kept(arm)) == 1


def difference(ours: Arm, theirs: Arm, key: tuple[str, str]) -> CrossedMean:
    """How much better the first is on the metric and filter of `key`, over the same documents and seeds; positive is
    better.

    Raises:
        ArgumentError: the metric is neither a mean nor a corpus metric that can be rebuilt.
    """
    one, two = ours.values(*key), theirs.values(*key)
    sign = -1 if ours.higher_is_better(key[0]) is False else 1
    return mean_of(sign * (one - two), ours.clusters(key[1]), one.ravel(), two.ravel())
