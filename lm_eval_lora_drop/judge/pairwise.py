"""Which of two systems' outputs judges prefer: each pair in both orders, and what position alone decides is a tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.judge.ask import PanelAnswers, Verdict, ask
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.panel import Judge, Panel
from lm_eval_lora_drop.judge.questions import Question, Rubric, preference_question
from lm_eval_lora_drop.judge.score import agreement, rubric_of
from lm_eval_lora_drop.judge.task import item_of, judge_fields
from lm_eval_lora_drop.record.fingerprint import digest_text
from lm_eval_lora_drop.record.plain import plain
from lm_eval_lora_drop.record.runs import Sample, TaskRun


@dataclass(frozen=True)
class Pair:
    """Two systems' outputs for one document."""

    doc_id: int
    kind: str
    source: str
    reference: str
    first: str
    second: str

    @property
    def outputs(self) -> list[str]:
        """The digests of the two outputs, by which files of the same pairs are joined."""
        return [digest_text(self.first), digest_text(self.second)]

    def questions(self, judge: Judge, rubric: Rubric) -> tuple[Question, Question]:
        """In both orders."""
        texts = (rubric, self.source, self.reference)
        return (
            preference_question(*texts, self.first, self.second, structured=judge.structured),
            preference_question(*texts, self.second, self.first, structured=judge.structured),
        )


def pair_up(one: TaskRun, two: TaskRun, rubric: Rubric | None = None) -> list[Pair]:
    """The documents that both runs logged, matched by id and content.

    Raises:
        ArgumentError: the task says nothing for judges, no logged samples, or other documents under the same ids.
    """
    fields = rubric or judge_fields(one.config) or judge_fields(two.config)
    if fields is None:
        raise ArgumentError(f"task {one.name} has no instructions for judges. Give --rubric (a YAML file).")
    found = {sample.doc_id: sample for sample in two.samples()}
    pairs = []
    for sample in one.samples():
        other = found.get(sample.doc_id)
        if other is None or not sample.outputs or not other.outputs:
            continue
        if sample.doc_hash != other.doc_hash:
            raise ArgumentError(f"task {one.name}, document {sample.doc_id}: the two runs saw different texts.")
        pairs.append(_pair(fields, sample, other))
    if not pairs:
        raise ArgumentError(f"task {one.name}: the runs share no logged document. Run lm_eval with --log_samples.")
    return pairs


def _pair(fields: dict[str, str] | Rubric, one: Sample, two: Sample) -> Pair:
    texts = [str(sample.outputs[0]).strip() for sample in (one, two)]
    item = item_of(fields, one.doc if isinstance(one.doc, dict) else {}, one.target, texts[0], one.prompt)
    return Pair(one.doc_id, item.kind, item.source, item.reference, *texts)


@dataclass
class Preference:
    """One judge's, or the panel's, choice per pair: 1 the first system, -1 the second, 0 a tie, None no verdict."""

    choices: list[int | None]
    flips: int
    """Pairs that were decided by position: the same place was preferred in both orders."""
    both_orders: int
    """Pairs with a verdict in both orders."""

    def to_json(self) -> dict[str, Any]:
        """Win rate of the first system with its confidence interval, sign test, and the rate of position bias."""
        wins, losses, ties = (self.choices.count(value) for value in (1, -1, 0))
        return {
            **rates(wins, losses, ties),
            "without_verdict": self.choices.count(None),
            "position_bias_rate": self.flips / self.both_orders if self.both_orders else None,
        }


def rates(wins: int, losses: int, ties: int) -> dict[str, Any]:
    """Win rate, a tie counting half, with a 95 % Wilson interval; exact sign test over the pairs that are no tie.

    A tie varies less than a decision, so with ties the interval is wider than it need be, never narrower.
    """
    from scipy.stats import binomtest

    number, decided = wins + losses + ties, wins + losses
    rate = (wins + ties / 2) / number if number else None
    low, high = wilson(rate, number) if rate is not None else (None, None)
    return {
        "wins": wins,
        "losses": losses,
        "ties": ties,
        "win_rate": rate,
        "win_rate_low": low,
        "win_rate_high": high,
        "sign_test_p": float(binomtest(wins, decided).pvalue) if decided else None,
    }


def wilson(rate: float, number: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); scipy's takes whole successes only, and a tie is half a one."""
    from scipy.stats import norm

    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    centre = (rate + z2 / (2 * number)) / (1 + z2 / number)
    half = math.sqrt(z2 * (rate * (1 - rate) / number + z2 / (4 * number**2))) / (1 + z2 / number)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass
class Comparison:
    """What the panel said about two systems."""

    panel: Panel
    by_judge: dict[str, Preference]
    panel_choice: Preference
    answers: PanelAnswers
    pairs: Sequence[Pair]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            "panel": self.panel_choice.to_json(),
            "judges": {name: preference.to_json() for name, preference in self.by_judge.items()},
            "agreement": plain(agreement([p.choices for p in self.by_judge.values()], "nominal")),
            "calls": self.answers.bill.calls,
            "calls_before": self.answers.bill.calls_before,
            "dollars": round(self.answers.bill.dollars_in_all, 6),
            "dollars_of_this_run": round(self.answers.bill.dollars, 6),
            "choices": [
                {
                    "doc_id": pair.doc_id,
                    "outputs": pair.outputs,
                    "judges": {name: preference.choices[place] for name, preference in self.by_judge.items()},
                }
                for place, pair in enumerate(self.pairs)
                if pair.first != pair.second
            ],
        }


def compare(panel: Panel, pairs: Sequence[Pair], cache: Cache, rubric: Rubric | None = None) -> Comparison:
    """Ask every judge about every pair in both orders. Identical outputs are a tie, unasked."""
    answers = ask(panel, lambda judge: both_orders(panel, pairs, judge, rubric), cache)
    by_judge = {name: preference_of(pairs, verdicts) for name, verdicts in answers.verdicts.items()}
    columns = zip(*(preference.choices for preference in by_judge.values()), strict=True)
    flips, complete = (sum(getattr(p, name) for p in by_judge.values()) for name in ("flips", "both_orders"))
    return Comparison(
        panel, by_judge, Preference([majority_of(column) for column in columns], flips, complete), answers, pairs
    )


def preference_of(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> Preference:
    """What a judge's verdicts on `both_orders` of the pairs say."""
    values = iter([verdict.value for verdict in verdicts])
    both = [("tie", "tie") if pair.first == pair.second else (next(values), next(values)) for pair in pairs]
    asked = [found for pair, found in zip(pairs, both, strict=True) if pair.first != pair.second and None not in found]
    flips = sum(forth == back and forth in ("A", "B") for forth, back in asked)
    return Preference([_choice(*found) for found in both], flips, len(asked))


def both_orders(panel: Panel, pairs: Sequence[Pair], judge: Judge, rubric: Rubric | None = None) -> list[Question]:
    """Two questions per pair whose outputs differ."""
    asked = [pair for pair in pairs if pair.first != pair.second]
    rubric = rubric_of(panel, pairs, rubric)
    return [question for pair in asked for question in pair.questions(judge, rubric)]


def _choice(forth: str | None, back: str | None) -> int | None:
    if forth is None or back is None:
        return None
    votes = {"A": 1, "B": -1, "tie": 0}[forth], {"A": -1, "B": 1, "tie": 0}[back]
    return votes[0] if votes[0] == votes[1] else 0


def majority_of(column: Sequence[int | None]) -> int | None:
    """The sign of the judges' votes; an even split is a tie."""
    votes = [vote for vote in column if vote is not None]
    return (sum(votes) > 0) - (sum(votes) < 0) if votes else None
