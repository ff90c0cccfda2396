import random

import pytest

from lm_eval_lora_drop.sweep import documents as validation
from testing.toy import CHOICE, make_task

validation.bind_requests()


def bind(task, **kwargs):
    task.build_all_requests(**kwargs)
    return validation.binding_of(task.instances[0])


def rows(prefix, n):
    return [{"question": f"{prefix} {i}?", "answer": str(i)} for i in range(n)]


def test_documents_come_from_the_validation_split():
    drawn = validation.draw(bind(make_task()), limit=100, seed=0)
    assert drawn.split == "validation"
    assert sorted(document.doc_id for document in drawn.documents) == list(range(10))
    assert all(document.doc["question"].startswith("validation") for document in drawn.documents)
    assert "only 10 of the 100" in drawn.warnings[0]


def test_the_training_split_serves_where_the_validation_split_is_evaluated():
    task = make_task(splits={"train": rows("train", 5), "validation": rows("validation", 5)})
    assert validation.draw(bind(task), limit=3, seed=0).split == "train"


@pytest.mark.parametrize("names", [{}, {"validation_split": "test"}, {"training_split": "test"}])
def test_a_task_with_nothing_but_the_evaluated_split_gives_nothing(names):
    task = make_task(splits={"test": rows("test", 5)}, **names)
    assert validation.draw(bind(task), limit=3, seed=0) is None


def test_only_planted_documents_leave_nothing_to_draw():
    task = make_task(splits={"test": rows("test", 6), "validation": rows("test", 6)})
    assert validation.draw(bind(task), limit=4, seed=0) is None


def test_the_draw_depends_on_the_seed_and_a_larger_limit_goes_on_from_a_smaller():
    binding = bind(make_task(num_fewshot=2))
    small, large = (validation.draw(binding, limit=n, seed=5) for n in (3, 7))
    assert large.documents[:3] == small.documents
    assert small.fingerprint != large.fingerprint
    assert [d.doc_id for d in validation.draw(binding, 7, seed=6).documents] != [d.doc_id for d in large.documents]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"system_instruction": "Be brief."},
        {
            "system_instruction": "Be brief.",
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "chat_template": lambda chat, add_generation_prompt=True: repr((chat, add_generation_prompt)),
        },
    ],
)
def test_prompts_are_built_like_those_of_the_run(arguments):
    # With the same documents in both splits the run's own prompts are the expected value; first_n needs no random draw.
    shots = {"sampler": "first_n", "split": "train"}
    splits = {"train": rows("train", 3), "validation": rows("validation", 4), "test": rows("test", 4)}
    config = {"num_fewshot": 2, "fewshot_config": shots, "gen_prefix": "It is"}
    drawn = validation.draw(bind(make_task(splits=splits, **config), **arguments), limit=4, seed=0)
    twin = make_task(splits={**splits, "test": splits["validation"], "validation": splits["test"]}, **config)
    twin.build_all_requests(**arguments)
    expected = {instance.doc_id: instance.args for instance in twin.instances}
    assert {document.doc_id: document.requests[0].args for document in drawn.documents} == expected


def test_a_document_is_never_its_own_few_shot_example():
    # Five documents, four examples each: without care nearly every prompt would show its own answer.
    task = make_task(splits={"train": rows("train", 5), "test": rows("test", 2)}, num_fewshot=4)
    drawn = validation.draw(bind(task), limit=5, seed=0)
    assert len(drawn.documents) == 5
    for document in drawn.documents:
        prompt = document.requests[0].args[0]
        assert prompt.count(document.doc["question"]) == 1
        assert prompt.count("train") == 5


def test_drawing_leaves_the_tasks_own_sequence_of_examples_alone():
    task, twin = make_task(num_fewshot=2), make_task(num_fewshot=2)
    binding = bind(task)
    bind(twin)
    sampler = task.sampler
    validation.draw(binding, limit=5, seed=0)
    assert task.sampler is sampler
    assert task.sampler.rnd.getstate() == twin.sampler.rnd.getstate() != random.Random(0).getstate()


def test_multiple_choice_documents_carry_one_request_for_each_choice():
    docs = [{"question": f"q{i}", "choices": ["a", "b", "c"], "label": i % 3} for i in range(4)]
    task = make_task(splits={"test": docs[:2], "validation": docs[2:]}, **CHOICE)
    binding = bind(task)
    drawn = validation.draw(binding, limit=2, seed=0)
    assert [len(document.requests) for document in drawn.documents] == [3, 3]
    assert validation.references(binding, drawn.documents) == [
        " " + "abc"[document.doc["label"]] for document in drawn.documents
    ]
