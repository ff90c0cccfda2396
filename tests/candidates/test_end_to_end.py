"""Every set through the harness: swept, written down, read back, exported; and as a fixed setting."""

import pytest
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from lm_eval_lora_drop.show.verdict.sweep_text import sweep_table, verdict
from lm_eval_lora_drop.sweep.candidates import CANDIDATES, SEARCHED, make_candidates
from lm_eval_lora_drop.variant import AdapterShape, Variant
from tests.candidates.toys import counted, counting_task, evaluate, texts

SHAPE = AdapterShape(4, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"), 4)


def test_the_shape_of_the_tiny_adapter_is_what_is_assumed_here(make):
    assert make(boundary="full").shape == SHAPE


@pytest.mark.parametrize("name", sorted(set(CANDIDATES) - {"adapters", "scores", *SEARCHED}))
def test_a_sweep_over_every_set(make, name):
    lm = make(boundary="auto", sweep_candidates=name, sweep_limit=4, sweep_engine="shared")
    results = evaluate(lm)
    record = from_config(results["config"], "here").tasks["toy"]
    expected = make_candidates([name], lm.shape)
    sweep = record.sweep
    assert [row.variant for row in sweep.candidates] == [str(variant) for variant in expected.variants]
    assert (sweep.candidate_set, sweep.ordered, sweep.engine) == (name, expected.ordered, "shared")
    assert sweep.check["passed"]
    # One item per document, and candidates that differ: a sweep in which all is equal would prove nothing.
    assert {len(row.items) for row in sweep.candidates} == {4}
    assert len({row.items for row in sweep.candidates}) > len(sweep.candidates) / 2
    kept = Variant.parse(sweep.chosen, 4)
    assert record.kept == kept
    assert record.boundary == kept.boundary
    if sweep.select == "best":
        assert sweep.candidate(sweep.chosen).score == max(row.score for row in sweep.candidates)
    # The run itself was answered under the choice: the same as asked for by name.
    fixed = make(layers=sweep.chosen)
    assert texts(results) == texts(evaluate(fixed))
    table = sweep_table(record, most=99)
    assert all(Variant.parse(row.variant, 4).label.rpartition("= ")[2] in table for row in sweep.candidates)
    assert "candidates on 4 documents" in table
    assert verdict(record).startswith("Keep ")


def test_the_items_of_a_sweep_are_those_of_fixed_settings(make):
    """An oracle that never sweeps: the validation documents as a test split, under layers=..."""
    results = evaluate(make(boundary="auto", sweep_candidates="window+modules+rank+soft", sweep_limit=3))
    record = from_config(results["config"], "here").tasks["toy"]
    order = record.validation.doc_ids
    moved = [{"question": f"validation question {i}?", "answer": f"answer {i}"} for i in range(10)]
    for text in ("1-2", "0-3.attention", "0-1+2-3r2", "0-1+2-3x0.25"):
        fixed = evaluate(make(layers=text), counting_task(splits={"test": moved}))
        said = texts(fixed)
        wanted = tuple(counted({}, said[doc_id][0])["exact_match"] for doc_id in order)
        assert record.sweep.candidate(text).items == pytest.approx(wanted)


def test_the_exported_choice_answers_as_evaluated(make, tiny_adapter, tmp_path):
    """Stock HFLM with stock PEFT on the exported folder, token for token; the full adapter says something else."""
    full = texts(evaluate(make(layers="0-3")))
    for text in ("1-2", "0-3x0.5", "0-3.attention", "0-1+2-3r2", "0+1x0.75+2-3x0.25.mlp", "0-3x1.5"):
        evaluated = texts(evaluate(make(layers=text)))
        export_adapter(tiny_adapter, Variant.parse(text, 4), tmp_path / text)
        assert texts(evaluate(make(HFLM, peft=tmp_path / text))) == evaluated != full, text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sweep_candidates": "windows"},
            r"sweep_candidates must be one of boundary.*got 'windows'.*sweep_candidates=window\?",
        ),
        ({"sweep_candidates": "window+"}, "sweep_candidates must be one of"),
        ({"sweep_candidates": "window+window"}, "named twice"),
        ({"sweep_candidates": "window", "sweep_boundaries": "1-2"}, "both say what a sweep compares"),
        ({"sweep_candidates": "greedy+window"}, "cannot be joined"),
        ({"sweep_candidates": "random", "sweep_size": 5}, "from 0 to 4"),
        ({"sweep_candidates": "window", "sweep_size": 2}, "sweep_size.*random"),
        ({"layers": "0-3.experts"}, "kinds of module"),
        ({"layers": "seed@0-3"}, "adapter"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_the_model_is_loaded(make, monkeypatch, given, message):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model is loaded"))
    with pytest.raises(ArgumentError, match=message):
        make(**given)
