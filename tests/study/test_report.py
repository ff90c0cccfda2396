"""A study's report: from cells as lm_eval writes them to claims; the same claims in both formats, and from scores."""

import dataclasses
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.find import find_runs
from lm_eval_lora_drop.statistics import corpus
from lm_eval_lora_drop.statistics.crossed import CrossedMean
from lm_eval_lora_drop.statistics.significance import holm
from lm_eval_lora_drop.study import pages, sections
from lm_eval_lora_drop.study.claims import Claim, claims
from lm_eval_lora_drop.study.config import read_study
from lm_eval_lora_drop.study.evidence import Arm, arms, mean_of
from lm_eval_lora_drop.study.plan import cell_folder, plan
from lm_eval_lora_drop.study.seeds import fixed_on_test, seed_curves
from lm_eval_lora_drop.variant import Variant
from testing.programs import load
from testing.studies import METADATA, study_of, write_study
from testing.toy import write_task

recompute_claims = load("tools/recompute_claims.py")


@pytest.fixture(scope="module")
def studied(tmp_path_factory, tiny_base):
    """A study that has run: two seeds, two rivals and controls on one task, all metrics of another, on a tiny model."""
    folder = tmp_path_factory.mktemp("studied")
    trainings = {
        "full": {"seeds": [0, 1]},
        "bottom": {"layers": "0-2", "seeds": [0, 1], "choices": ["full"], "tasks": ["problems"]},
        "dropout": {"lora_dropout": 0.1, "choices": ["full"], "tasks": ["problems"]},
    }
    trainings["full"]["tasks"] = ["problems"]
    trainings["json"] = {"choices": ["full", 2], "tasks": ["json"]}
    choices = ["full", "base", "auto", 3, "sweep_candidates=upper"]
    metadata = {**METADATA, "test_documents": 7}
    config = study_of(tiny_base, folder, metadata=metadata, trainings=trainings, choices=choices, controls=2)
    json_task = {**config["tasks"]["problems"], "task": "lora_drop_json"}
    json_task["training"] = {**json_task["training"], "limit": 8, "max_length": 1000}
    json_task["evaluation"] = {**json_task["evaluation"], "limit": 6, "gen_kwargs": {"max_gen_toks": 8}}
    config["tasks"]["json"] = json_task
    # Two filters of one metric: the number after the first word, and the whole answer.
    rows = [{"question": f"say {number}", "answer": str(number)} for number in range(24)]
    filters = [
        {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "^x(.)"}, {"function": "take_first"}]},
        {"name": "any", "filter": [{"function": "regex", "regex_pattern": "(.)"}, {"function": "take_first"}]},
    ]
    splits = {"train": rows[:8], "validation": rows[8:16], "test": rows[16:]}
    write_task(folder / "tasks", "filtered", splits, filter_list=filters)
    config["include_path"] = str(folder / "tasks")
    config["tasks"]["filtered"] = {**config["tasks"]["problems"], "task": "filtered", "metadata": {}}
    trainings["filtered"] = {"choices": ["full", 2], "tasks": ["filtered"]}
    path = write_study(folder, config)
    assert cli.main(["study", "--config", str(path)]) == 0
    return path


def of_problems(study):
    """The arms and the claims of the task with rivals and controls."""
    gathered = [arm for arm in arms(study) if arm.task.name == "problems"]
    return gathered, claims(study, gathered)


def test_the_claims_are_those_of_the_cells(studied):
    gathered, found = of_problems(read_study(studied))
    assert [(arm.training, arm.choice, arm.seeds) for arm in gathered] == [
        ("full", "full", (0, 1)),
        ("", "base", (0,)),
        ("full", "auto", (0, 1)),
        ("full", "3", (0, 1)),
        ("full", "sweep_candidates=upper", (0, 1)),
        ("full", "upper 3 layers", (0, 1)),
        ("full", "random 3 layers", (0, 1)),
        ("bottom", "full", (0, 1)),
        ("dropout", "full", (0,)),
    ]
    assert [one.statement for one in found] == [
        "training (full) helps the base model",
        "the sweep's choice is better than the full adapter (full)",
        "K = 3 is better than the full adapter (full)",
        "the choice of a sweep over upper is better than the full adapter (full)",
        "K = 3 is better than the upper 3 layers (full)",
        "K = 3 is better than random sets of 3 layers (full)",
        "training fewer layers (bottom) is better than the plain training",
        "the sweep's choice is better than training fewer layers (bottom)",
        "K = 3 is better than training fewer layers (bottom), which is as large",
        "regularising the training (dropout) is better than the plain training",
        "the sweep's choice is better than regularising the training (dropout)",
    ]
    tested = [one for one in found if one.p_holm is not None]
    assert [one.p_holm for one in tested] == holm([one.mean.p_value for one in tested])
    assert len(tested) >= len(found) - 2
    # By hand, from the results files alone.
    for one in found:
        metric = one.ours.metrics[0]
        ours, theirs = ([run.scores[metric].value for run in side.runs] for side in (one.ours, one.theirs))
        assert one.mean.value == pytest.approx(np.mean(ours) - np.mean(theirs), abs=1e-12)
        assert one.mean.seeds == len(set(one.ours.of_runs))
    assert found[-1].verdict.endswith("1 seed, another may differ)")


def test_a_search_that_keeps_everything_is_no_test(studied):
    """The same adapters on both sides: an interval around 0 would say that documents cannot tell what is not there."""
    study = read_study(studied)
    gathered, _ = of_problems(study)
    whole = next(arm for arm in gathered if (arm.training, arm.choice) == ("full", "full"))
    others = [arm for arm in gathered if arm.choice not in ("auto", "sweep_candidates=upper")]
    auto = dataclasses.replace(whole, choice="auto")
    found = claims(study, [*others, auto])
    (same,) = [one for one in found if one.p_holm is None]
    assert same.ours is not same.theirs
    assert same.verdict == "full adapter kept under every seed: nothing to test"
    rest = [one for one in found if one is not same]
    assert [one.p_holm for one in rest] == holm([one.mean.p_value for one in rest])


def test_random_sets_of_one_seed_count_as_one(studied):
    """Two sets a seed, two seeds: the mean of each seed's two, and not four seeds."""
    gathered, found = of_problems(read_study(studied))
    control = next(arm for arm in gathered if arm.choice == "random 3 layers")
    assert (control.of_runs, control.control) == ((0, 0, 1, 1), 3)
    key = control.metrics[0]
    alone = dataclasses.replace(control, of_runs=(0, 1, 2, 3)).values(*key)
    assert np.array_equal(control.values(*key), (alone[[0, 2]] + alone[[1, 3]]) / 2)
    (claim,) = [one for one in found if one.theirs.control and "random" in one.statement]
    assert claim.mean.seeds == 2
    assert {record.kept_parameters for record in claim.ours.records + claim.theirs.records} == {
        claim.ours.records[0].kept_parameters
    }


def test_every_metric_of_a_task_has_its_claims(studied):
    study = read_study(studied)
    found = [one for one in claims(study, arms(study)) if one.task.name == "json"]
    metrics = list(dict.fromkeys(one.metric for one in found))
    assert metrics[0] == found[0].ours.metrics[0][0]
    assert {"json_valid", "schema_valid", "field_f1"} <= set(metrics)
    assert not {"cut_off", "empty", "characters"} & set(metrics)
    assert [one.is_first for one in found] == [one.metric == metrics[0] for one in found]
    statements = [[one.statement for one in found if one.metric == metric] for metric in metrics]
    assert all(one == statements[0] for one in statements)
    tested = [one for one in claims(study, arms(study)) if one.p_holm is not None]
    assert [one.p_holm for one in tested] == holm([one.mean.p_value for one in tested])


def test_a_reader_recomputes_every_claim(studied, tmp_path):
    """From the file of per-document scores alone, without the cells."""
    study = read_study(studied)
    found = claims(study, arms(study))
    pages.write_report(study)
    data = json.loads(gzip.decompress((study.output / pages.DOCUMENTS).read_bytes()))
    again = recompute_claims.recompute(data)
    assert [(one["task"], one["claim"], one["metric"]) for one, _, _ in again] == [
        (one.task.name, one.statement, one.metric) for one in found
    ]
    for claim, (_, mean, p_holm) in zip(found, again, strict=True):
        assert mean == claim.mean
        assert p_holm == claim.p_holm
    # The numbers are those of the results files, filter by filter.
    seen = set()
    for entry in data["scores"]:
        (arm,) = [arm for arm in arms(study) if (arm.task.name, arm.name) == (entry["task"], entry["system"])]
        (key,) = [
            key
            for key in arm.metrics
            if entry["metric"] in (key[0], ",".join(key)) and arm.label(key) == entry["metric"]
        ]
        seen.add(entry["metric"])
        if entry["seeds"] == list(arm.seeds):
            assert np.mean(entry["values"]) == pytest.approx(np.mean([run.scores[key].value for run in arm.runs]))
    assert {"exact_match,strict", "exact_match,any", "exact_match", "json_valid"} <= seen


def test_documents_without_a_value_are_left_out():
    """As a metric of one type of question has them; a mean over the others, with their clusters."""
    values = np.array([[1.0, np.nan, 0.0, 1.0], [1.0, 0.0, 0.0, np.nan]])
    clusters = np.array([0, 1, 2, 2])
    found = mean_of(values, clusters)
    assert (found.value, found.documents, found.seeds) == (0.5, 2, 2)
    with pytest.raises(ArgumentError, match="no document has a value"):
        mean_of(np.array([[np.nan, 1.0], [0.0, np.nan]]), None)


@pytest.mark.parametrize(
    ("value", "interval", "p_holm", "verdict"),
    [
        (2.0, (0.9, 3.1), 0.01, "holds (7 documents, 2 seeds)"),
        (-2.0, (-3.1, -0.9), 0.01, "does not hold, worse (7 documents, 2 seeds)"),
        (0.3, (-0.8, 1.4), 0.6, "inconclusive (95 % CI -0.80 to +1.40; 7 documents, 2 seeds)"),
        # Its own interval says it, the correction does not: neither alone is the whole truth.
        (
            -2.0,
            (-3.9, -0.1),
            0.3,
            "not significant after correction for all comparisons, alone worse (95 % CI -3.90 to -0.10; "
            "7 documents, 2 seeds)",
        ),
    ],
)
def test_a_verdict_says_what_interval_and_correction_say(studied, value, interval, p_holm, verdict):
    one = claims(study := read_study(studied), arms(study))[0]
    mean = dataclasses.replace(one.mean, value=value, interval=interval, stderr=0.55, documents=7, seeds=2)
    assert dataclasses.replace(one, mean=mean, p_holm=p_holm).verdict == verdict


def test_both_formats_say_the_same(studied, capsys):
    study = read_study(studied)
    assert cli.main(["study", "--config", str(studied), "--only", "report"]) == 0
    said = capsys.readouterr().out
    content = sections.sections(study, arms(study), claims(study, arms(study)))
    for suffix in ("md", "tex"):
        path = study.output / f"report.{suffix}"
        assert str(path) in said
        text = path.read_text()
        for section in content:
            assert section.title in text
    titles = [section.title for section in content]
    assert titles == [
        "Does dropping help?",
        "Scores on problems",
        "Scores on json",
        "Scores on filtered",
        "Claims",
        "Is the boundary stable?",
        "What the outputs look like",
    ]
    assert (study.output / "claims.png").stat().st_size > 1000


def test_the_curves_of_the_seeds_are_those_of_their_sweeps(studied):
    """By hand, from the records' candidates; the tested K from the results files."""
    gathered, found = of_problems(study := read_study(studied))
    auto = next(arm for arm in gathered if arm.choice == "auto")
    curves = seed_curves(auto, gathered)
    assert list(curves.seeds) == ["seed 0", "seed 1"]
    for values, record in zip(curves.seeds.values(), auto.records, strict=True):
        scores = {Variant.parse(row.variant, 4).boundary: row.score for row in record.sweep.candidates}
        assert set(values) == set(scores)
        for boundary, difference in values.items():
            assert difference == pytest.approx(scores[boundary] - scores[4], abs=1e-12)
    for boundary, (mean, low, high) in curves.mean.items():
        assert low <= mean <= high
        assert mean == pytest.approx(np.mean([values[boundary] for values in curves.seeds.values()]), abs=1e-12)
    (claim,) = [one for one in found if one.statement == "K = 3 is better than the full adapter (full)"]
    assert curves.test == {}  # the sweep's metric was the likelihood, which no test split has
    tested = fixed_on_test(auto, gathered, ("exact_match", "strict-match"))
    assert tested == {3: (claim.mean.value, *claim.mean.interval)}
    assert [arm.choice for arm in gathered if seed_curves(arm, gathered)] == ["auto"]
    assert (study.output / "seeds.png").stat().st_size > 1000
    # A K without any value under one seed has no point; it used to end the report.
    sweep = auto.records[1].sweep
    rows = [
        dataclasses.replace(row, items=(None,) * len(row.items)) if row.variant == "none" else row
        for row in sweep.candidates
    ]
    emptied = dataclasses.replace(auto.records[1], sweep=dataclasses.replace(sweep, candidates=tuple(rows)))
    fake = SimpleNamespace(
        task=auto.task, training="full", choice="auto", of_runs=(None, 1), records=(auto.records[0], emptied)
    )
    found = seed_curves(fake, [])
    assert list(found.seeds) == ["adapter", "seed 1"]
    assert set(found.mean) == set(curves.mean) - {0}


def test_what_a_study_calls_things_is_escaped():
    evil = sections.Section("t", ("<b>&_",), (["a|b"], [["<script>alert(1)</script>|x", "50 % & $_{\\"]]))
    assert "<script" not in pages.markdown([evil])
    assert "\\|x" in pages.markdown([evil])
    tex = pages.latex([evil])
    assert re.search(r"(?<!\\)[&%$_](?!\d)", tex.replace(" & ", "").replace("tabular", "")) is None or "\\%" in tex
    assert "\\&" in tex
    assert "\\_" in tex


def test_other_documents_are_refused(studied, tmp_path):
    """A cell whose documents changed in between is not compared with the rest."""
    study = read_study(studied)
    cells = [cell for _, group in plan(study) for cell in group]
    folder = cell_folder(study, cells[2])
    (file,) = folder.rglob("samples_*.jsonl")
    before = file.read_text()
    rows = [json.loads(line) for line in before.splitlines()]
    rows[1]["doc_hash"] = "0" * 64
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        with pytest.raises(ArgumentError, match="has not evaluated the same documents as"):
            arms(study)
    finally:
        file.write_text(before)
    assert not find_runs([folder])[1]


def test_pseudo_values_mean_the_corpus_score():
    metric = corpus.corpus_metric("bleu")
    hypotheses = ["the cat sat on the mat", "a dog runs fast today", "we go home now please"]
    references = ["the cat sat on a mat", "a dog ran fast today", "we are going home now"]
    values = corpus.pseudo_values(metric, hypotheses, references)
    assert values.mean() == pytest.approx(metric.corpus_score(hypotheses, [references]).score)
    assert values.std() > 0


@pytest.mark.parametrize("choice", ["19", "probe", "default", "auto", "layers=0-14+20", "sweep_candidates=window"])
def test_every_part_of_an_adapter_answers_the_question(choice):
    """Only the sweep's was looked for: "No comparison yet" stood beside finished cells of K = 19 and of the probe."""
    claim = made_claim(choice, of_seeds=(-0.4, -0.6))
    (said,) = sections.sections(SimpleNamespace(tasks=()), (), (claim,))[0].paragraphs
    assert said == f"t: the part is better: {claim.verdict}."
    assert "No comparison yet" in sections._headline([], []).paragraphs[0]


def made_claim(choice, *, of_seeds, apart=None, p_holm=0.01):
    task = SimpleNamespace(name="t")
    seeds = tuple(range(len(of_seeds)))
    ours, theirs = (Arm(task, "full", kept, seeds, ()) for kept in (choice, "full"))
    value = sum(of_seeds) / len(of_seeds)
    mean = CrossedMean(value, 0.1, (value - 0.2, value + 0.2), 0.001, of_seeds, len(of_seeds), 7, apart)
    return Claim(task, "the part is better", ours, theirs, "em", mean, p_holm)


def test_a_seed_that_lies_apart_stands_in_the_verdict():
    said = made_claim("auto", of_seeds=(-0.4, -9.0, -0.5), apart=1).verdict
    assert "Seed 1 lies apart (-9.00; the others -0.40, -0.50)" in said
    assert "lies apart" not in made_claim("auto", of_seeds=(-0.4, -0.6, -0.5)).verdict


def test_identical_systems_have_no_interval():
    claim = made_claim("auto", of_seeds=(0.0, 0.0), p_holm=None)
    head, (row,) = sections._claims([claim]).table
    assert dict(zip(head, row, strict=True))["95 % interval"] == "-"


def test_wide_tables_are_broken_into_the_width_of_the_text():
    """Each column has a share of the line that holds its longest word; they fill the line."""
    long = "is worse than the full adapter, by 1.2 to 3.4 on 200 documents and three seeds"
    text = pages.latex([sections.Section("Wide", (), (["a", "claim", "b"], [["x", long, long], ["y", "z", long]]))])
    widths = [float(found) for found in re.findall(r"p\{([.0-9]+)\\linewidth\}", text)]
    assert len(widths) == 3
    assert sum(widths) + 2 * 0.01 * 3 <= 1.001
    assert "p{" not in pages.latex([sections.Section("Narrow", (), (["a", "b"], [["1", "2"]]))])
