"""The one builder: what it says of a document is what lm-eval asks, and would write as the answer of an example."""

import pytest

from lm_eval_lora_drop.sweep import documents as validation
from testing.toy import CHOICE, make_task

DOCS = [
    {"question": f"Is it {n}?", "answer": f"right {n}", "choices": ["a", "b", "c"], "label": n % 3} for n in range(4)
]
TASKS = {
    "text": {},
    "description": {"description": "Answer in a word.\n"},
    "delimiter": {"target_delimiter": "\n"},
    "no delimiter": {"target_delimiter": ""},
    "prefix": {"gen_prefix": "It is"},
    "prefix with a space": {"gen_prefix": "It is "},
    "several answers": {"doc_to_target": lambda doc: [doc["answer"], "wrong"]},
    "choice": CHOICE,
    "choice by template": {**CHOICE, "doc_to_target": "{{label}}"},
    "choice from a fixed list": {**CHOICE, "doc_to_choice": ["no", "yes", "maybe"]},
    "choice after a prefix": {**CHOICE, "gen_prefix": "It is"},
}


@pytest.mark.parametrize("config", TASKS.values(), ids=TASKS)
def test_prompt_and_answer_are_those_of_a_few_shot_example(config):
    # With the document as the only example, the harness itself writes prompt and answer before the next question.
    shown, asked = DOCS[1], DOCS[0]
    task = make_task(splits={"train": [shown], "test": [asked]}, fewshot_split="train", num_fewshot=1, **config)
    prompt, answer = validation.example(task, shown)
    context = task.fewshot_context(asked, num_fewshot=1, gen_prefix=task.doc_to_prefix(asked))
    assert context.startswith(prompt + answer + "\n\n")
    assert prompt == task.fewshot_context(shown, num_fewshot=0, gen_prefix=task.doc_to_prefix(shown))


def test_the_answer_of_a_choice_is_its_text():
    task = make_task(splits={"train": DOCS, "test": DOCS}, **CHOICE)
    assert [validation.reference(task, doc) for doc in DOCS] == [" a", " b", " c", " a"]


def test_of_several_inputs_the_right_one_is_the_prompt():
    docs = [{"options": [f"It was Ann {n}", f"It was Ben {n}"], "label": n % 2, "rest": "who fell."} for n in range(4)]
    task = make_task(
        splits={"train": docs, "test": docs},
        **{**CHOICE, "doc_to_text": "label", "doc_to_choice": "options", "doc_to_target": "rest"},
    )
    assert validation.example(task, docs[1]) == ("It was Ben 1", " who fell.")


def test_a_chat_template_and_a_system_instruction_shape_the_prompt():
    task = make_task()
    arguments = {
        "apply_chat_template": True,
        "chat_template": lambda chat, add_generation_prompt=True: repr((chat, add_generation_prompt)),
        "system_instruction": "Be brief.",
    }
    doc = task.training_docs()[0]
    task.build_all_requests(limit=1, **arguments)
    expected = task.instances[0].args[0].replace(task.instances[0].doc["question"], doc["question"])
    assert validation.example(task, doc, arguments)[0] == expected
