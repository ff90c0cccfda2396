"""Every request knows its task, and every model the tasks of its own run."""

from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.documents import RequestBindings
from testing.toy import make_task

validation.bind_requests()


def test_every_request_knows_its_task():
    task = make_task()
    task.build_all_requests(limit=3, system_instruction="Be brief.")
    binding = validation.binding_of(task.instances[0])
    assert binding.task is task
    assert binding.prompt_arguments["system_instruction"] == "Be brief."
    assert {id(validation.binding_of(instance)) for instance in task.instances} == {id(binding)}


def test_each_owner_begins_its_own_run():
    first, second = RequestBindings(), RequestBindings()
    one, other = make_task("one"), make_task("other")
    one.build_all_requests(limit=1)
    second.begin()
    other.build_all_requests(limit=1)
    assert [binding.task for binding in first] == [one, other]
    assert [binding.task for binding in second] == [other]


def test_a_task_built_again_takes_its_own_place():
    bindings = RequestBindings()
    for task in (make_task("one"), make_task("one")):
        task.build_all_requests(limit=1)
    assert [binding.task for binding in bindings] == [task]
