"""GSM8K is scored exactly as by the harness's own `gsm8k` task: the same filters, the same treatment of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

ADVERSARIAL = [
    "", "no number", "#### 5", "####5", "#### -5", "#### 1,000", "#### 1000.00", "#### $5", "#### 5.", "#### 5 apples",
    "The answer is 5.", "It costs $1,234.50 in all", "-3", "minus 3", "3 or 4", "#### 3\n#### 4", "#### 3 #### 4",
    "x = 2 and y = 7 so 9", "1.5", "0.5%", "½", "٣", "#### ٣", "５", "5\n\nQuestion: 6", "#### .5", "#### ,", "....",
    "$", "$$$", "#### 1,2,3", "1 000", "1e3", "#### 5)", "#### +5", "#### - 5", "The answer is **18**.",
    "so 18 dollars\n#### 18.0", "#### 18#### 19", "\n#### 18\n", "#### 18 ", "18", "#### eighteen", "-$5", "$-5",
]  # fmt: skip


def score(task: Any, doc: dict[str, Any], answers: Sequence[str]) -> list[dict[str, float]]:
    """For every answer: the exact match under each filter."""
    instances = [
        Instance(
            request_type="generate_until", doc=doc, arguments=("", {}), idx=0, metadata=("t", n, 1), resps=[answer]
        )
        for n, answer in enumerate(answers)
    ]
    for filter_ in task._filters:
        filter_.apply(instances)
    return [
        {name: task.process_results(doc, [text]).get("exact_match") for name, text in one.filtered_resps.items()}
        for one in instances
    ]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The harness's own task, with a dataset of one row in the place of the download."""
    config = load_yaml(Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml")
    rows = Dataset.from_list([{"question": "q", "answer": "#### 1"}])
    config["custom_dataset"] = lambda **_: DatasetDict(train=rows, test=rows)
    return ConfigurableTask(config=config)


@pytest.fixture(scope="module")
def ours(load_task: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our task, from two small files."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n', encoding="utf-8")
    return load_task("lora_drop_gsm8k", data_dir=str(folder))


FILTERS = ("strict-match", "flexible-extract")


@pytest.mark.parametrize("answer", ["#### 5", "#### 1,000", "#### -3", "#### 18", "#### 1.5", "#### 0"])
def test_adversarial_answers(ours: Any, theirs: Any, answer: str) -> None:
    """Thousands separators, decimals, signs, currency, several numbers: the harness's own score, one by one."""
    doc = {"question": "q", "answer": f"Some steps.\n{answer}"}
    expected = score(theirs, doc, ADVERSARIAL)
    found = score(ours, doc, ADVERSARIAL)
    for text, one, other in zip(ADVERSARIAL, found, expected, strict=True):
        assert {name: one[name] for name in FILTERS} == {name: other[name] for name in FILTERS}, text
    assert any(one["strict-match"] == 1 for one in found) or answer in ("#### 1.5", "#### 0", "#### -3")


def test_real_answers(ours: Any, theirs: Any, read_sample: Callable[[str], list[dict[str, Any]]]) -> None:
    """The first 100 reference answers, each against its own question and against its neighbour's."""
    docs = read_sample("gsm8k/test.jsonl")[:100]
    answers = [doc["answer"] for doc in docs]
    for number, doc in enumerate(docs):
        candidates = [
            answers[number],
            answers[number - 1],
            answers[number].replace("#### ", "The answer is $") + ".",
            answers[number].rsplit("\n", 1)[0],
        ]
        found, expected = score(ours, doc, candidates), score(theirs, doc, candidates)
        assert [[one[name] for name in FILTERS] for one in found] == [
            [one[name] for name in FILTERS] for one in expected
        ]
        assert [found[0][name] for name in FILTERS] == [1.0, 1.0]


def test_the_shape_is_that_of_the_whole_output(ours: Any) -> None:
    """Length and emptiness are measured once, on what was written, not on the number taken out of it."""
    doc = {"question": "q", "answer": "#### 5"}
    instance = Instance("generate_until", doc, ("", {}), 0, ("t", 0, 1), resps=["two and three\n#### 5"])
    for filter_ in ours._filters:
        filter_.apply([instance])
    scores = {name: ours.process_results(doc, [text]) for name, text in instance.filtered_resps.items()}
    assert scores == {
        "strict-match": {"exact_match": 1.0},
        "flexible-extract": {"exact_match": 1.0},
        "output": {"words": 5.0, "cut_off": 0.0, "empty": 0.0},
    }
