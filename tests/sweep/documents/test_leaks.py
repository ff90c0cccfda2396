"""What a search may not read, planted in all its forms."""

import unicodedata

import pytest

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.record.schema import Reason
from lm_eval_lora_drop.sweep import documents as validation
from testing.toy import CHOICE, make_task

STORIES = [
    "Mara found a map of the old harbour in her grandfather's desk and decided to follow it on Sunday morning.",
    "The bakery at the corner closes early on weekdays, yet its owner keeps a light on for late visitors.",
    "After three weeks of rain the river rose above the lower bridge and the school bus took the mountain road.",
    "Nobody in the village remembered who had planted the walnut tree, but everyone had climbed it once.",
]
OTHERS = [
    "A violin maker explained to the class why spruce from high valleys sounds brighter than other wood.",
    "Two sisters opened a repair shop for bicycles next to the station and hired their former teacher.",
    "The museum returned the bronze statue after letters from the sculptor's family had come to light.",
]


def rows(texts, **more):
    return [{"question": text, "answer": "yes", **more} for text in texts]


def draw(task, limit=100, seed=0, **arguments):
    return validation.draw(Binding(task, arguments), limit, seed)


PLANTS = {
    "case": str.upper,
    "white space": lambda text: "  " + text.replace(" ", "\n \t", 3),
    "Unicode form": lambda text: unicodedata.normalize("NFD", text.replace("Mara", "Mára")),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" < c < "~" else c for c in text),
    "punctuation": lambda text: text.replace(",", " -").replace(".", "!!!").replace("'", "’"),
    "a word": lambda text: text.replace(" the ", " that ", 1),
    "a typo": lambda text: text.replace("er", "re", 1),
    "a word more": lambda text: text + " Indeed.",
}


@pytest.mark.parametrize("change", PLANTS.values(), ids=PLANTS)
def test_a_changed_copy_of_an_evaluated_document_is_left_out(change):
    evaluated = [STORIES[0].replace("Mara", "Mára"), *STORIES[1:]] if change is PLANTS["Unicode form"] else STORIES
    planted = [change(text) for text in STORIES]
    task = make_task(splits={"test": rows(evaluated), "validation": rows(OTHERS + planted)})
    drawn = draw(task)
    assert sorted(document.doc_id for document in drawn.documents) == [0, 1, 2]
    assert {(one.doc_id, one.of) for one in drawn.left_out} == {(3 + i, i) for i in range(4)}
    assert {one.reason for one in drawn.left_out} <= {Reason.EVALUATED, Reason.NEARLY_EVALUATED}
    assert all(0.65 <= one.similarity <= 1 for one in drawn.left_out)


def test_what_the_prompt_does_not_show_makes_no_other_document():
    planted = [{**row, "answer": "no", "id": "x"} for row in rows(STORIES)]
    task = make_task(splits={"test": rows(STORIES, id="y"), "validation": rows(OTHERS, id="z") + planted})
    assert len(draw(task).left_out) == 4


@pytest.mark.parametrize(
    "prompt",
    [
        "Read the following text with great care, then answer with yes or no, without any explanation: {{question}}",
        lambda doc: "Read the following text with great care and answer with yes or no only. " * 5 + doc["question"],
    ],
)
def test_text_that_the_template_adds_makes_nothing_alike(prompt):
    names = ["Ada Pine", "Bo Reed", "Cy Marsh", "Di Stone", "Ed Brook", "Flo Vale"]
    splits = {"test": rows(names[:3]), "validation": rows(names[3:])}
    assert draw(make_task(splits=splits, doc_to_text=prompt)).left_out == ()


def test_text_that_all_documents_carry_in_a_field_makes_nothing_alike():
    task_text = "Read the text below with great care, then answer with yes or no, without any explanation at all. "
    words = [f"{a}{b}" for a in ("stone", "river", "cloud", "maple") for b in ("gate", "field", "wick", "born", "ham")]
    splits = {"test": rows([task_text + word for word in words[:10]]),
              "validation": rows([task_text + word for word in words[10:]])}  # fmt: skip
    assert draw(make_task(splits=splits)).left_out == ()


def test_documents_that_are_there_twice_are_drawn_once():
    twice = [OTHERS[0], OTHERS[0].lower(), OTHERS[1], OTHERS[1].replace("hired", "asked")]
    drawn = draw(make_task(splits={"test": rows(STORIES), "validation": rows(twice)}))
    assert len(drawn.documents) == 2
    assert {one.reason for one in drawn.left_out} == {Reason.TWICE, Reason.NEARLY_TWICE}
    assert "2 of the 100" in drawn.warnings[0]
    assert all({one.doc_id, one.of} in ({0, 1}, {2, 3}) for one in drawn.left_out)


def test_what_is_left_out_does_not_depend_on_how_many_are_asked_for():
    texts = [f"{text} {name}" for text in OTHERS for name in ("Anna", "Bert", "Cleo", "Dora")]
    task = make_task(splits={"test": rows(STORIES), "validation": rows(texts + STORIES[:2])})
    large = draw(task)
    for limit in range(1, len(large.documents)):
        small = draw(task, limit)
        assert small.documents == large.documents[:limit]
        assert small.left_out == large.left_out[: len(small.left_out)]


def test_choices_are_part_of_a_question_that_is_asked_of_every_document():
    # An empty context, as in lm-eval's blimp: without the choices all documents would be one.
    def choices(texts):
        return [{"choices": [text, text[::-1]], "label": 0} for text in texts]

    splits = {"test": choices(STORIES), "validation": choices([*OTHERS, STORIES[0]])}
    task = make_task(splits=splits, **{**CHOICE, "doc_to_text": "", "doc_to_choice": "{{choices}}"})
    drawn = draw(task)
    assert len(drawn.documents) == 3
    assert [one.of for one in drawn.left_out] == [0]


def test_an_evaluated_document_among_the_examples_is_never_shown():
    pool = rows([*OTHERS, *STORIES[:3], STORIES[3].upper()])
    more = rows(["The ferry leaves at noon unless fog hides the island from the captain's cabin.",
                 "Grandmother's recipe asks for chestnuts, but hazelnuts from the garden do as well."])  # fmt: skip
    task = make_task(
        splits={"train": pool, "test": rows(STORIES), "validation": more}, num_fewshot=2, fewshot_split="train"
    )
    drawn = draw(task)
    prompts = [document.requests[0].args[0] for document in drawn.documents]
    assert len(prompts) == 2
    for prompt in prompts:
        assert sum(text in prompt for text in OTHERS) == 2
        assert not any(text.lower() in prompt.lower() for text in STORIES)
    shown = [one for one in drawn.left_out if one.reason is Reason.EXAMPLE]
    assert shown
    assert all(one.doc_id == 3 + one.of for one in shown)


def test_a_task_whose_examples_are_the_evaluated_split_shows_others():
    task = make_task(splits={"test": rows(STORIES), "validation": rows(OTHERS)}, num_fewshot=2, fewshot_split="test")
    drawn = draw(task)
    for document in drawn.documents:
        prompt = document.requests[0].args[0]
        assert all(prompt.count(text) == 1 for text in OTHERS)
        assert not any(text in prompt for text in STORIES)
    assert "evaluated split 'test'" in " ".join(drawn.warnings)


def test_fixed_examples_just_as_many_as_are_asked_for():
    samples = rows(OTHERS[:2])
    task = make_task(
        splits={"test": rows(STORIES[:2]), "validation": rows(STORIES[2:])},
        num_fewshot=2,
        fewshot_config={"samples": samples, "sampler": "default"},
    )
    for document in draw(task).documents:
        assert all(text in document.requests[0].args[0] for text in OTHERS[:2])


def test_too_few_examples_are_said():
    task = make_task(splits={"test": rows(STORIES), "validation": rows(OTHERS)}, num_fewshot=5, fewshot_split="test")
    assert any("fewer than 5 few-shot examples" in warning for warning in draw(task).warnings)


@pytest.mark.parametrize("key", ["passage", "{{passage}}", "{{passage | upper}}"])
def test_a_task_names_what_belongs_together(key):
    docs = [{"question": text, "answer": "a", "passage": passage} for text, passage in zip(OTHERS, "aab", strict=True)]
    task = make_task(
        splits={"test": [{**row, "passage": "c"} for row in rows(STORIES)], "validation": docs},
        metadata={"version": 1, "cluster": key},
    )
    found = {document.doc_id: document.cluster for document in draw(task).documents}
    assert found[0] == found[1] != found[2]


def test_without_a_key_each_document_stands_alone():
    assert {document.cluster for document in draw(make_task()).documents} == {None}


@pytest.mark.parametrize("key", ["pasage", "{{pasage}}", 7])
def test_a_key_that_does_not_fit_is_refused(key):
    task = make_task(metadata={"version": 1, "cluster": key})
    with pytest.raises(ArgumentError, match=r"metadata.cluster of task toy must be .* question, answer"):
        draw(task)


def test_examples_of_the_same_cluster_are_not_shown():
    docs = [
        {"question": text, "answer": "a", "passage": p} for text, p in zip([*OTHERS, STORIES[0]], "aabc", strict=True)
    ]
    task = make_task(
        splits={"test": [{**row, "passage": "d"} for row in rows(STORIES[1:])], "validation": docs},
        num_fewshot=1,
        fewshot_split="validation",
        metadata={"version": 1, "cluster": "passage"},
    )
    for seed in range(5):
        prompts = {document.doc_id: document.requests[0].args[0] for document in draw(task, seed=seed).documents}
        assert OTHERS[1] not in prompts[0]
        assert OTHERS[0] not in prompts[1]
