"""The test split under the chosen part, the full adapter and the base model at once (`evaluate=`).

The oracle is three runs of their own, with boundary=K, boundary=full and boundary=base.
"""

import functools
import json
import math

import pytest

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.record.schema import from_config
from testing.toy import CHOICE, evaluate, make_task

ALL = "chosen+full+base"
TEST = [{"question": f"Who wrote the {i}. letter", "answer": "e", "group": i // 2} for i in range(9)]
VALIDATION = [{"question": f"Where is number {i}", "answer": "e", "group": i} for i in range(6)]
SPLITS = {"test": TEST, "validation": VALIDATION}


def measured(doc, results):
    """Numbers that differ with nearly every answer, one of them missing now and then."""
    text = results[0] if isinstance(results[0], str) else results[0][0]
    found = {"length": len(text), "letters": len(set(text))}
    return found if len(text) % 5 else {"letters": found["letters"]}


def generating(name="toy", **config):
    metrics = [
        {"metric": "length", "aggregation": "mean", "higher_is_better": True},
        {"metric": "letters", "aggregation": "mean", "higher_is_better": False},
    ]
    return make_task(name, **{"splits": SPLITS, "process_results": measured, "metric_list": metrics, **config})


def choosing(name="choices"):
    docs = [{"question": f"Question {i}", "choices": [" yes", " no", " perhaps"], "label": i % 3} for i in range(14)]
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    return make_task(name, splits={"test": docs[:8], "validation": docs[8:]}, **{**CHOICE, "metric_list": metrics})


def rolling(name="rolling"):
    metric = {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    return make_task(
        name,
        splits=SPLITS,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{question}}",
        generation_kwargs=None,
        metric_list=[metric, {**metric, "metric": "word_perplexity", "aggregation": "weighted_perplexity"}],
    )


def filtered(name="filtered"):
    """Greedy, asked three times, two filters."""
    filters = [
        {"name": "three", "filter": [{"function": "take_first_k", "k": 3}]},
        {"name": "one", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"}, {"function": "take_first"}]},
    ]
    return generating(name, repeats=3, filter_list=filters)


TASKS = {"generating": generating, "choosing": choosing, "rolling": rolling, "filtered": filtered}


@pytest.fixture(scope="module")
def alone(tiny_base, tiny_adapter):
    """What a run of its own finds, of a kind of task and under a boundary."""
    given = {"pretrained": str(tiny_base), "peft": str(tiny_adapter), "device": "cpu", "dtype": "float32"}

    @functools.cache
    def run(kind, boundary):
        return evaluate(LoraDropLM(**given, batch_size=4, boundary=boundary), TASKS[kind]())

    return run


def entry_of(results, task):
    json.dumps(results["config"]["lora_drop"])
    return from_config(results["config"], "here").tasks[task]


def rows_of(results, task):
    """Variant -> row of the test split."""
    evaluated = entry_of(results, task).evaluated
    assert evaluated is not None
    return {row.variant: row for row in evaluated.rows}


def same(ours, theirs):
    """Equal as JSON has it, numbers up to rounding."""
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, (int, float)):
        return ours is not None and math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-6)
    return ours == theirs


def assert_as_separate(row, doc_ids, separate, task):
    """Each score of a row is the one that its own run has, document by document."""
    aggregated = separate["results"][task]
    assert row.scores
    for score in row.scores:
        samples = {s["doc_id"]: s for s in separate["samples"][task] if s["filter"] == score.metric.filter}
        assert sorted(samples) == list(doc_ids)
        theirs = [samples[doc_id].get(score.metric.name) for doc_id in doc_ids]
        assert same(score.items, theirs), (score.metric, score.items, theirs)
        assert same(score.score, aggregated[f"{score.metric.name},{score.metric.filter}"])
    told = {(s.metric.name, s.metric.filter) for s in row.scores}
    assert told == {tuple(key.split(",")) for key in aggregated if "," in key and "_stderr," not in key}


@pytest.mark.parametrize("kind", TASKS)
def test_every_document_is_scored_as_in_three_runs(make, alone, tmp_path, kind):
    task = TASKS[kind]
    name = task().config.task
    together = evaluate(make(boundary="2", evaluate=ALL, sweep_dir=str(tmp_path / "test")), task())
    evaluated = entry_of(together, name).evaluated
    rows = rows_of(together, name)
    assert list(rows) == ["0-1", "0-3", "none"]
    answers = set()
    for variant, boundary in (("0-1", "2"), ("0-3", "full"), ("none", "base")):
        separate = alone(kind, boundary)
        assert_as_separate(rows[variant], evaluated.doc_ids, separate, name)
        answers.add(str([sample["resps"] for sample in separate["samples"][name]]))
        if boundary == "2":
            assert together["results"] == separate["results"]
            assert together["samples"] == separate["samples"]
    assert len(answers) == 3, "the three must answer differently, or nothing is shown"


def beside(make, tmp_path, *tasks, sweep_dir="test", evaluate_=ALL, **model_args):
    """A run whose journals lie in a folder of their own."""
    options = {name: model_args.pop(name) for name in ("limit", "samples", "use_cache") if name in model_args}
    given = {} if evaluate_ is None else {"evaluate": evaluate_}
    lm = make(**{"boundary": "2", "sweep_dir": str(tmp_path / sweep_dir), **given, **model_args})
    return evaluate(lm, *tasks, **options)


def journaled(folder):
    """(variant, document) of every line of the journals of test splits."""
    lines = [line for file in sorted(folder.glob("*.test-*.jsonl")) for line in file.read_text().splitlines()[1:]]
    return [(row["variant"], row["doc_id"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("model_args", [{"sweep_engine": "plain"}, {"merge": True}, {"batch_size": "auto"}], ids=str)
def test_where_nothing_is_shared_each_is_answered_as_alone(make, alone, tmp_path, model_args):
    given = {name: value for name, value in model_args.items() if name != "batch_size"}
    lm = make(boundary="2", evaluate=ALL, sweep_dir=str(tmp_path), **given)
    lm.batch_size_per_gpu = model_args.get("batch_size", lm.batch_size_per_gpu)
    evaluated = entry_of(evaluate(lm, generating()), "toy").evaluated
    for row, boundary in zip(evaluated.rows, ("2", "full", "base"), strict=True):
        merged = evaluate(make(boundary=boundary, merge=True), generating()) if "merge" in model_args else None
        assert_as_separate(row, evaluated.doc_ids, merged or alone("generating", boundary), "toy")


def test_several_tasks_some_documents_and_a_chat(make, tmp_path):
    tasks = [generating("one"), choosing(), generating("two", num_fewshot=2)]
    together = beside(make, tmp_path, *tasks, limit=3)
    full = evaluate(make(boundary="full"), generating("one"), choosing(), generating("two", num_fewshot=2), limit=3)
    for name in ("one", "choices", "two"):
        evaluated = entry_of(together, name).evaluated
        assert evaluated.doc_ids == (0, 1, 2)
        assert_as_separate(evaluated.row("0-3"), evaluated.doc_ids, full, name)


def test_documents_that_were_named_keep_their_indices(make, tmp_path):
    together = beside(make, tmp_path, generating(), samples={"toy": [1, 4, 7]})
    full = evaluate(make(boundary="full"), generating(), samples={"toy": [1, 4, 7]})
    evaluated = entry_of(together, "toy").evaluated
    assert evaluated.doc_ids == (1, 4, 7)
    assert_as_separate(evaluated.row("0-3"), evaluated.doc_ids, full, "toy")


@pytest.mark.parametrize(
    ("boundary", "variants", "answered"),
    [("full", ["0-3", "none"], 2), ("base", ["none", "0-3"], 2), ("4", ["0-3", "none"], 2), ("2", None, 3)],
)
def test_what_is_the_same_is_answered_once(make, tmp_path, boundary, variants, answered):
    results = beside(make, tmp_path, generating(), boundary=boundary)
    rows = rows_of(results, "toy")
    assert list(rows) == (variants or ["0-1", "0-3", "none"])
    lines = journaled(tmp_path / "test")
    assert len(lines) == len(set(lines)) == answered * len(TEST)


def test_nothing_more_is_asked_where_the_choice_is_all_that_is_wanted(make, tmp_path):
    for number, given in enumerate(("chosen", None)):
        results = beside(make, tmp_path, generating(), sweep_dir=f"none{number}", evaluate_=given)
        assert entry_of(results, "toy").evaluated is None
    assert (
        entry_of(beside(make, tmp_path, generating(), boundary="full", evaluate_="chosen+full"), "toy").evaluated
        is None
    )
    assert not list(tmp_path.glob("*/*.test-*"))


def test_a_sweep_evaluates_full_too_where_one_pass_answers_both(make, tmp_path):
    swept = evaluate(make(boundary="auto", sweep_limit=3, sweep_boundaries="0-2"), generating(), choosing())
    for name in ("toy", "choices"):
        evaluated = entry_of(swept, name).evaluated
        assert [row.variant for row in evaluated.rows][1:] == ["0-3"]
        assert evaluated.engine == "shared"
    alone = evaluate(
        make(boundary="auto", sweep_limit=3, sweep_boundaries="0-2", evaluate="chosen"), generating(), choosing()
    )
    assert swept["results"] == alone["results"]
    assert swept["samples"] == alone["samples"]
    record = {name: {**entry, "evaluated": None} for name, entry in swept["config"]["lora_drop"]["tasks"].items()}
    for name, entry in alone["config"]["lora_drop"]["tasks"].items():
        for changing in ("seconds", "sweep"):
            record[name].pop(changing), entry.pop(changing)
        assert record[name] == entry


def test_a_sweep_leaves_full_out_where_it_would_take_a_second_run(make, caplog):
    caplog.set_level("INFO")
    plain = evaluate(make(boundary="auto", sweep_limit=2, sweep_boundaries="0-2", sweep_engine="plain"), generating())
    assert entry_of(plain, "toy").evaluated is None
    assert "evaluate=chosen+full" in caplog.text


def test_a_second_run_answers_nothing_anew(make, tmp_path, monkeypatch):
    first = beside(make, tmp_path, generating(), choosing())
    before = journaled(tmp_path / "test")
    monkeypatch.setattr(type(make(boundary="2")), "prepare", None)
    again = beside(make, tmp_path, generating(), choosing())
    assert journaled(tmp_path / "test") == before
    assert again["samples"] == first["samples"]
    for name in ("toy", "choices"):
        one, two = entry_of(first, name).evaluated, entry_of(again, name).evaluated
        assert one.rows == two.rows


def test_the_others_get_into_no_answer_cache(make, tmp_path):
    from sqlitedict import SqliteDict

    from lm_eval_lora_drop.backends.identity.cache_guard import KEY

    cache = str(tmp_path / "cache")
    first = beside(make, tmp_path, generating(), use_cache=cache)
    with SqliteDict(f"{cache}_rank0.db") as stored:
        answers = [value for key, value in stored.items() if key != KEY]
    assert sorted(answers) == sorted(sample["resps"][0][0] for sample in first["samples"]["toy"])
    # All of the chosen one's come from the cache now, and the others are answered all the same.
    again = beside(make, tmp_path, generating(), use_cache=cache, sweep_dir="elsewhere")
    assert again["samples"] == first["samples"]
    assert rows_of(again, "toy") == rows_of(first, "toy")
    assert {variant for variant, _ in journaled(tmp_path / "elsewhere")} == {"0-3", "none"}


def test_a_score_that_fails_costs_the_chosen_ones_nothing(make, alone, tmp_path):
    chosen = {s["resps"][0][0] for s in alone("generating", "2")["samples"]["toy"]}

    def picky(doc, results):
        if results[0] not in chosen:
            raise ZeroDivisionError("no such answer")
        return {"length": len(results[0]), "letters": 1}

    results = beside(make, tmp_path, generating(process_results=picky))
    entry = entry_of(results, "toy")
    assert results["results"]["toy"]["length,none"] > 0
    assert entry.evaluated is None
    assert any("no such answer" in warning and "test split" in warning for warning in entry.warnings)


def test_differences_are_those_of_compare(make, tmp_path):
    """Of two saved runs on the same documents, by cluster where the task names one."""
    from lm_eval_lora_drop.harness.evaluation import evaluate as save
    from lm_eval_lora_drop.show.report.compare import compare
    from lm_eval_lora_drop.show.report.systems import open_system

    for metadata in ({"version": 1}, {"version": 1, "cluster": "group"}):
        together = beside(make, tmp_path, generating(metadata=metadata), sweep_dir=str(len(metadata)))
        folders = {}
        for boundary in ("full", "2", "base"):
            folders[boundary] = tmp_path / f"{boundary}-{len(metadata)}"
            save(
                make(boundary=boundary),
                folders[boundary],
                tasks=[generating(metadata=metadata)],
                model_args={"pretrained": "x", "boundary": boundary},
            )
        systems = [open_system(str(folders[boundary]))[0] for boundary in ("full", "2", "base")]
        (compared,) = compare(systems).tasks
        rows, tested = rows_of(together, "toy"), 0
        for number, variant in ((1, "0-1"), (2, "none")):
            label = systems[number].label
            for score in rows[variant].scores:
                (row,) = (r for r in compared.metrics if r.other == label and r.metric == score.metric.name)
                sign = 1 if score.metric.higher_is_better else -1
                # No document has a value under both, or those that have are one cluster.
                if row.p_value is None or not all(map(math.isfinite, row.interval)):
                    assert score.to_full is None
                    continue
                tested += 1
                assert score.to_full.difference == pytest.approx(sign * row.difference)
                assert (score.to_full.low, score.to_full.high) == pytest.approx(sorted(sign * e for e in row.interval))
                assert score.to_full.p_value == pytest.approx(row.p_value)
        assert tested >= 3
        assert all(score.to_full is None for score in rows["0-3"].scores)


def test_what_samples_is_asked_as_often_as_the_harness_asks(make, tmp_path):
    settings = {"until": ["\n"], "max_gen_toks": 3, "do_sample": True, "temperature": 1.0}
    kept = [{"name": "all", "filter": [{"function": "take_first_k", "k": 4}]}]

    def different(doc, results):
        return {"length": len(set(results[0])), "letters": len(results[0])}

    task = {"generation_kwargs": settings, "repeats": 4, "filter_list": kept, "process_results": different}
    together = beside(make, tmp_path, generating(**task))
    alone = evaluate(make(boundary="2"), generating(**task))
    assert together["samples"] == alone["samples"], "the others draw no random number of the run"
    for row in rows_of(together, "toy").values():
        scores = {score.metric.name: score.score for score in row.scores}
        assert scores["letters"] == 4
        assert scores["length"] > 2


def test_outputs_are_written_where_samples_are(make, alone, tmp_path):
    from lm_eval_lora_drop.harness.evaluation import evaluate as save

    full = alone("generating", "full")["samples"]["toy"]
    unsaved = beside(make, tmp_path, generating())
    assert all(not row.outputs for row in rows_of(unsaved, "toy").values())
    lm = make(boundary="2", evaluate=ALL, sweep_dir=str(tmp_path / "test"))
    results, _ = save(lm, tmp_path / "out", tasks=[generating()])
    rows = rows_of(results, "toy")
    assert not rows["0-1"].outputs
    assert same(rows["0-3"].outputs, [sample["resps"] for sample in full])


@pytest.mark.parametrize(
    ("given", "said"), [("full", "must name chosen"), ("chosen+ful", "full"), ("", "evaluate"), (3, "evaluate")]
)
def test_other_words_are_refused(given, said):
    with pytest.raises(ArgumentError, match="evaluate") as refused:
        parse_model_args({"evaluate": given}, known=())
    assert said in str(refused.value)
