"""`lora-drop compare`: the right test for each metric, refusals that say in what, the error analysis."""

import json

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from scipy import stats

import lm_eval_lora_drop as lora_drop
from lm_eval_lora_drop.commands import main as cli
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH, CHRF2
from lm_eval_lora_drop.show.report.compare import compare
from lm_eval_lora_drop.show.report.outputs import contains, marked
from lm_eval_lora_drop.show.report.systems import open_system
from testing.run_files import write_run


def two(tmp_path, left, right, **both):
    write_run(tmp_path / "a", left, name="one", **both)
    write_run(tmp_path / "b", right, name="two", **both)
    return [open_system(str(tmp_path / folder))[0] for folder in "ab"]


def test_each_metric_gets_its_test(tmp_path):
    """McNemar for 0/1, randomisation else; gains and losses by the metric's direction; the first is the task's test."""
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
    assert found.tests == 1
    assert em.p_holm == em.p_table == pytest.approx(em.p_value)
    assert (f1.p_holm, cost.p_holm) == (None, None)
    (by_metric,) = compare(two(tmp_path, left, right, higher={"cost": False}), metrics=["cost"]).tasks[0].metrics
    assert by_metric.p_holm == cost.p_value == pytest.approx(2.0**-19)


HYPOTHESES = ["我们 今天去学校", "他很高兴看到你", "天气不错,出去走走", "这本书很有意思", "请给我一杯水"] * 4
OTHER = ["我们今天去学校了", "他看到你很高兴", "天气很好,出去走走吧", "这本书有意思", "请给我水"] * 4
REFERENCES = ["我们今天去学校", "他很高兴看到你", "天气很好,出去走走", "这本书很有意思", "请给我一杯水"] * 4


def corpus_runs(tmp_path, metric, name, texts):
    """One run for each of `texts`, scored by our task's metric."""
    runs = []
    for label, outputs in texts.items():
        items = [metric.statistics(text.strip(), ref) for text, ref in zip(outputs, REFERENCES, strict=True)]
        write_run(
            tmp_path / label,
            {name: items},
            name=label,
            outputs=outputs,
            targets=REFERENCES,
            aggregation={name: repr(metric)},
            scores={name: metric(items)},
        )
        runs.append(open_system(str(tmp_path / label))[0])
    return runs


def test_bleu_of_runs_has_the_larger_of_two_p_values(tmp_path):
    """The oracles are other computations: exchanges drawn here and scored by sacrebleu; Student's t of jackknife
    pseudo-values, each from sacrebleu's score of the other documents, in Hall's cubic form (1992). Here the exchanges
    have the smaller p-value; in the next test, the larger one."""
    row = compare(corpus_runs(tmp_path, BLEU_ZH, "bleu", {"one": HYPOTHESES, "two": OTHER})).tasks[0].metrics[0]
    metric = BLEU(tokenize="zh")
    rng = np.random.default_rng(5)

    def bleu(texts, kept=range(20)):
        return metric.corpus_score([texts[i] for i in kept], [[REFERENCES[i] for i in kept]]).score

    def difference(exchanged):
        one = [b if e else a for a, b, e in zip(HYPOTHESES, OTHER, exchanged, strict=True)]
        two = [a if e else b for a, b, e in zip(HYPOTHESES, OTHER, exchanged, strict=True)]
        return bleu(two) - bleu(one)

    observed = difference([False] * 20)
    exchange = np.mean([abs(difference(rng.random(20) < 0.5)) >= abs(observed) - 1e-7 for _ in range(600)])
    others = [[i for i in range(20) if i != left_out] for left_out in range(20)]
    pseudo = np.array([20 * observed - 19 * (bleu(OTHER, kept) - bleu(HYPOTHESES, kept)) for kept in others])
    pseudo += observed - pseudo.mean()
    t, a = stats.ttest_1samp(pseudo, 0.0).statistic, stats.skew(pseudo) / (3 * np.sqrt(20))
    hall = 2 * stats.t.sf(abs(((1 + a * t) ** 3 - 1) / (3 * a) + a / 2), 19)
    assert row.difference == pytest.approx(observed)
    assert exchange < 0.15 < hall
    assert row.p_value == pytest.approx(hall)
    assert "9,999 draws" in row.test
    assert "BLEU nrefs:1" in row.test
    assert row.interval[0] <= row.difference <= row.interval[1]


def test_equal_systems_and_chrf(tmp_path):
    """The same outputs twice: p = 1, by chrF as our tasks print it; twenty documents do not prove them equal."""
    row = compare(corpus_runs(tmp_path, CHRF2, "chrf", {"one": OTHER, "two": OTHER})).tasks[0].metrics[0]
    assert (row.p_value, row.difference) == (1.0, 0.0)
    assert row.interval[0] < 0 < row.interval[1]
    assert "CHRF nrefs:1" in row.test


def test_clusters_named_by_the_task(tmp_path, capsys):
    """Twelve documents on three passages: tested by passage; the same runs without the word are tested by document."""
    docs = [{"question": str(i), "passage": f"p{i // 4}"} for i in range(12)]
    for metadata, clusters, p in (({"cluster": "passage"}, 3, 0.25), ({}, None, 2.0**-11)):
        both = {"docs": docs, "metadata": metadata}
        found = compare(two(tmp_path, {"em": [0] * 12}, {"em": [1] * 12}, **both))
        assert found.tasks[0].clusters == clusters
        assert found.tasks[0].metrics[0].p_value == pytest.approx(p)
    both = {"docs": docs, "metadata": {"cluster": "chapter"}}
    (row,) = compare(two(tmp_path, {"em": [0] * 12}, {"em": [1] * 12}, **both)).tasks[0].metrics
    assert row.p_value is None
    assert "cluster: chapter, which this document does not have. Its fields: question, passage" in row.note
    two(tmp_path, {"em": [0] * 12}, {"em": [1] * 12}, docs=docs, metadata={"cluster": "passage"})
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "12 documents in 3 clusters" in said
    assert "A: model:one|task:t|version:1.0|n:12|fewshot:0|lm-eval:0.4.13" in said
    assert f"{lora_drop.compare(tmp_path / 'a', tmp_path / 'b')}\n" == said


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
