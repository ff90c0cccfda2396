"""`lora-drop compare`: the right test for each metric, refusals that say in what, the error analysis."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH, CHRF2
from lm_eval_lora_drop.report.compare import compare
from lm_eval_lora_drop.report.outputs import contains, marked
from lm_eval_lora_drop.report.systems import open_system
from tests.report.files import write_run


def two(tmp_path, left, right, **both):
    write_run(tmp_path / "a", left, name="one", **both)
    write_run(tmp_path / "b", right, name="two", **both)
    return [open_system(str(tmp_path / folder))[0] for folder in "ab"]


def test_each_metric_gets_its_test(tmp_path):
    """McNemar for 0/1, randomisation else; gains and losses by the metric's direction; Holm over the table."""
    left = {"em": [1, 1, 0, 0] * 5, "f1": [0.5] * 20, "cost": [1.0] * 20}
    right = {"em": [1, 0, 1, 1] * 5, "f1": [0.5, 0.75] * 10, "cost": [2.0] * 20}
    found = compare(two(tmp_path, left, right, higher={"cost": False}))
    em, f1, cost = found.tasks[0].metrics
    assert (em.test, em.gained, em.lost) == ("McNemar, exact", 10, 5)
    assert em.p_value == pytest.approx(0.3017578125)  # scipy.stats.binomtest(5, 15).pvalue
    assert f1.test.startswith("paired randomisation")
    assert (f1.gained, f1.lost) == (10, 0)
    assert (cost.gained, cost.lost) == (0, 20)
    assert f1.interval[0] <= f1.difference <= f1.interval[1]
    assert found.tests == 3
    assert em.p_holm == pytest.approx(em.p_value)
    assert cost.p_holm == pytest.approx(min(1.0, 3 * cost.p_value))


HYPOTHESES = ["我们 今天去学校", "他很高兴看到你", "天气不错,出去走走", "这本书很有意思", "请给我一杯水"] * 4
OTHER = ["我们今天去学校了", "他看到你很高兴", "天气很好,出去走走吧", "这本书有意思", "请给我水"] * 4
REFERENCES = ["我们今天去学校", "他很高兴看到你", "天气很好,出去走走", "这本书很有意思", "请给我一杯水"] * 4


def test_bleu_equals_the_sacrebleu_command(tmp_path):
    """The p-value of `sacrebleu ref -i a b --paired-ar`, from the logged outputs."""
    runs = []
    for name, texts in (("one", HYPOTHESES), ("two", OTHER)):
        items = [BLEU_ZH.statistics(text.strip(), ref) for text, ref in zip(texts, REFERENCES, strict=True)]
        write_run(
            tmp_path / name,
            {"bleu": items},
            name=name,
            outputs=texts,
            targets=REFERENCES,
            aggregation={"bleu": repr(BLEU_ZH)},
            scores={"bleu": BLEU_ZH(items)},
        )
        runs.append(open_system(str(tmp_path / name))[0])
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "ref.txt").write_text("\n".join(REFERENCES) + "\n")
    command = [
        sys.executable,
        "-m",
        "sacrebleu",
        "ref.txt",
        "-i",
        "one.txt",
        "two.txt",
        "-m",
        "bleu",
        "--tokenize",
        "zh",
    ]
    said = subprocess.run(
        [*command, "--paired-ar", "-f", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SACREBLEU_SEED": "12345"},
    ).stdout
    want = json.loads(said)[1]["BLEU"]
    row = compare(runs).tasks[0].metrics[0]
    assert row.p_value == pytest.approx(want["p_value"], abs=1e-12)
    assert row.other_score == pytest.approx(want["score"], abs=0.01)
    assert "seed:12345" in row.test
    assert row.interval[0] <= row.difference <= row.interval[1]


def test_equal_systems_and_chrf(tmp_path):
    """The same outputs twice: p = 1, by chrF as our tasks print it."""
    items = [CHRF2.statistics(text, ref) for text, ref in zip(OTHER, REFERENCES, strict=True)]
    both = {
        "aggregation": {"chrf": repr(CHRF2)},
        "scores": {"chrf": CHRF2(items)},
        "targets": REFERENCES,
        "outputs": OTHER,
    }
    row = compare(two(tmp_path, {"chrf": items}, {"chrf": items}, **both)).tasks[0].metrics[0]
    assert (row.p_value, row.difference, row.interval) == (1.0, 0.0, (0.0, 0.0))
    assert row.test.startswith("sacrebleu")


def test_a_score_that_the_texts_do_not_give_is_not_tested(tmp_path):
    """A task that cleans its texts before scoring: the difference is shown, the test would be of other texts."""
    items = [[1, 1, *[1] * 8]] * 3
    both = {"aggregation": {"bleu": repr(BLEU_ZH)}, "scores": {"bleu": 55.5}, "outputs": ["a", "b", "c"]}
    row = compare(two(tmp_path, {"bleu": items}, {"bleu": items}, **both)).tasks[0].metrics[0]
    assert row.p_value is None
    assert "not the recorded score" in row.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2.0}, r"task version \(1.0 and 2.0\)"),
        ({"prompt": "other"}, r"prompts \(3 of 3: doc_id 0, 1, 2\)"),
        ({"targets": ["target 0", "x", "target 2"]}, r"targets \(1 of 3: doc_id 1\)"),
    ],
)
def test_runs_that_differ_are_refused(change, message, tmp_path):
    write_run(tmp_path / "a", {"em": [1, 0, 1]}, name="one")
    write_run(tmp_path / "b", {"em": [1, 0, 1]}, name="two", **change)
    with pytest.raises(ArgumentError, match=message):
        compare([open_system(str(tmp_path / folder))[0] for folder in "ab"])


def test_other_documents_are_refused_and_counted(tmp_path):
    write_run(tmp_path / "a", {"em": [1, 0, 1]}, name="one")
    write_run(tmp_path / "b", {"em": [1, 0]}, name="two")
    with pytest.raises(ArgumentError, match=r"documents \(3 and 2; 1 only in the first \(2\)\)"):
        compare([open_system(str(tmp_path / folder))[0] for folder in "ab"])


def test_mixed_tasks_are_named_and_the_common_ones_shown(tmp_path, capsys):
    """One common task, one alone, one that cannot be compared: the first is shown, the command fails all the same."""
    for folder, own in (("a", "x"), ("b", "y")):
        write_run(tmp_path / folder, {"em": [1, 0]}, name=folder, task="t")
        write_run(tmp_path / folder, {"em": [1, 0]}, name=folder, task=own, date="2026-01-02T00-00-00.000000")
        version = 1.0 if folder == "a" else 2.0
        write_run(
            tmp_path / folder, {"em": [1]}, name=folder, task="v", date="2026-01-03T00-00-00.000000", version=version
        )
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "out.json")]) == 1
    said = capsys.readouterr().out
    assert "Task t, version 1.0, 2 documents" in said
    assert "task x is left out: only a has it" in said
    assert "Not compared, task v: a and b: task version (1.0 and 2.0)" in said
    assert json.loads((tmp_path / "out.json").read_text())["refused"].keys() == {"v"}


def test_no_common_task_and_no_samples(tmp_path, capsys):
    write_run(tmp_path / "a", {"em": [1, 0]}, task="t")
    write_run(tmp_path / "b", {"em": [1, 0]}, task="u")
    write_run(tmp_path / "c", {"em": [1, 1]}, task="t", samples=False)
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "no task in common" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 0
    said = capsys.readouterr()
    assert "no samples, no test" in said.out
    assert "was --log_samples given?" in said.err


def test_error_analysis_of_lost_documents(tmp_path):
    """Of the documents where the second scores lower: how many hold the first's answer, and how long they are."""
    outputs = (["Paris", "Rome", "Oslo", "Bern"], ["It is  paris, I think", "no idea", "Oslo", "bern."])
    write_run(tmp_path / "a", {"em": [1, 1, 1, 0]}, name="one", outputs=outputs[0])
    write_run(tmp_path / "b", {"em": [0, 0, 1, 1]}, name="two", outputs=outputs[1])
    (errors,) = compare([open_system(str(tmp_path / f))[0] for f in "ab"]).tasks[0].errors
    assert (errors.worse, errors.documents, errors.contain) == (2, 4, 0.5)
    assert errors.length_ratio == pytest.approx((21 + 7) / (5 + 4))
    assert (errors.over_one_word_baseline, errors.over_one_word_other) == (0.0, 0.5)
    assert [document["doc_id"] for document in errors.worst] == [0, 1]


def test_marked_texts_are_the_texts():
    """The pieces joined are the inputs, whatever they hold; what is common is not marked."""
    rng = np.random.default_rng(0)
    signs = list("ab \n<é一。")
    for _ in range(200):
        one, other = ("".join(rng.choice(signs, rng.integers(0, 30))) for _ in range(2))
        left, right = marked(one, other)
        assert "".join(text for _, text in left) == one
        assert "".join(text for _, text in right) == other
        assert not any(differs for differs, _ in marked(one, one)[0])
    assert marked("the cat", "the dog") == ([(False, "the "), (True, "cat")], [(False, "the "), (True, "dog")])
    assert contains("", "") is False
