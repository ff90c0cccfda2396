"""A few cases of `benchmarks/matrix.py` by its own command: what it says of them, and that one crash costs one row."""

import json
import os

import pytest

from benchmarks import matrix
from benchmarks.matrix_cases import Case, families, make_config
from benchmarks.matrix_identity import ANEW
from benchmarks.matrix_run import CRASH, DECODER, HF_FAILS, LEFT_OUT, REFUSED, RULE, SHARED, WRONG
from testing.forked import Forked

CASES = {
    "families/olmo2/all linear": {SHARED},
    "families/gpt_bigcode/all linear": {"plain by check"},
    "adapters/bias=lora_only (Qwen2)/": {REFUSED},
    "requests/num_beams 2/": {RULE},
    "requests/an empty prompt beside others/": {HF_FAILS},
    "identity/generation_config.json: repetition_penalty/": {ANEW},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    work = tmp_path_factory.mktemp("matrix") / "work.jsonl"
    process = Forked(["-m", "benchmarks.matrix", "--work", str(work), "--only", *CASES])
    _, said = process.communicate()
    assert process.returncode == 0, said[-2000:]
    return matrix.read(work)


def test_a_fixed_few_are_as_the_page_says(rows):
    assert {
        key: {o["what"] for kind, o in row["outcomes"].items() if kind != "evaluated"} for key, row in rows.items()
    } == CASES
    outcomes = [outcome for row in rows.values() for outcome in row["outcomes"].values()]
    assert not any(outcome["what"] in (WRONG, CRASH, LEFT_OUT) for outcome in outcomes)
    assert all(o["compared"] > 0 for o in outcomes if o["what"] == SHARED)
    assert rows["families/olmo2/all linear"]["outcomes"]["evaluated"]["what"] == DECODER


def test_the_page_counts_them_and_names_the_reasons(rows):
    page = matrix.table(rows, [case for case in matrix.all_cases() if case.key in rows])
    assert "| olmo2 | all linear | shared | shared | decoder |" in page
    assert "| Model families | 2 of 2 |" in page
    assert json.loads(json.dumps(rows)) == rows


def test_a_case_that_ends_its_process_costs_one_row(tmp_path):
    def leave():
        os._exit(3)

    (row,) = run(tmp_path, Case("requests", "leaves", asked=leave)).values()
    assert row["outcomes"]["generate_until"] == {"what": CRASH, "why": "the process ended: exit status 3"}


def run(folder, case):
    matrix.run_all([case], folder / "work.jsonl", 60)
    return matrix.read(folder / "work.jsonl")


def test_there_are_as_many_cases_as_the_page_promises():
    cases = matrix.all_cases()
    assert len({case.key for case in cases}) == len(cases)
    number = {group: sum(case.group == group for case in cases) for group in matrix.TITLES}
    assert number["families"] >= 2 * 60
    assert number["adapters"] >= 20
    assert number["requests"] >= 25
    assert make_config(families()[0]).num_hidden_layers == 3
