"""One choice under bounds, and one for several tasks, through the harness."""

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import from_config
from tests.candidates.test_also import other_task
from tests.candidates.toys import counting_task, evaluate, texts


@pytest.fixture
def make(make):
    """Sweeps over five documents, unless what is kept is given."""

    def build(**model_args):
        swept = {} if "layers" in model_args else {"sweep_limit": 5, "boundary": "auto"}
        return make(**{**swept, **model_args})

    return build


def records(results):
    return from_config(results["config"], "here").tasks


def run(lm, *tasks, **given):
    return lm_eval.simple_evaluate(
        model=lm, tasks=list(tasks), bootstrap_iters=0, task_manager=TaskManager(include_defaults=False), **given
    )


def test_the_choice_keeps_its_bounds_and_is_what_is_evaluated(make, tmp_path):
    path = other_task(tmp_path)
    rule = f"smallest:0.5+0.8@{path}"
    results = evaluate(make(sweep_candidates="boundary+modules", sweep_also=str(path), sweep_select=rule))
    task = records(results)["toy"]
    own = {row.variant: row.score for row in task.sweep.candidates}
    other = {row.variant: row.score for row in task.also[0].candidates}
    within = [n for n in own if own[n] >= 0.5 * own["0-3"] and other[n] >= 0.8 * other["0-3"]]
    least = min(task.candidate_parameters[name] for name in within)
    smallest = [name for name in within if task.candidate_parameters[name] == least]
    assert task.variant == task.sweep.chosen == max(smallest, key=lambda name: own[name])
    assert task.kept_parameters == least < task.candidate_parameters["0-3"]
    # By the task's own name, not by where its file lies.
    assert task.sweep.select == "smallest:0.5+0.8@other"
    assert [(one.task, one.met) for one in task.sweep.bounds] == [(None, True), ("other", True)]
    fixed = texts(evaluate(make(layers=task.variant)))
    assert texts(results) == fixed


def test_one_choice_for_tasks_of_different_request_types(make, tmp_path):
    """Their requests reach the model in two calls; the choice is made once, before the first."""
    path = other_task(tmp_path)
    together = {"sweep_candidates": "boundary+window", "sweep_jointly": "mean"}
    results = run(make(**together), counting_task(), str(path))
    found = records(results)
    assert set(found) == {"toy", "other"}
    assert found["toy"].variant == found["other"].variant
    told = found["toy"].sweep.jointly
    assert (told.how, list(told.others)) == ("mean", ["other"])
    # The sweeps are those of each task by itself, and so is what each would have taken.
    alone = records(
        run(make(sweep_candidates="boundary+window", sweep_dir=str(tmp_path / "b")), counting_task(), str(path))
    )
    for name, task in found.items():
        assert task.sweep.candidates == alone[name].sweep.candidates
        assert task.sweep.jointly.alone == alone[name].variant
    assert alone["toy"].variant != alone["other"].variant
    fixed = run(make(layers=found["toy"].variant), counting_task(), str(path))
    assert texts(results) == texts(fixed)
    assert texts(results, "other") == texts(fixed, "other")


def test_the_next_evaluation_of_a_model_has_its_own_tasks(make, tmp_path):
    lm = make(sweep_jointly=True)
    run(lm, counting_task(), str(other_task(tmp_path)))
    again = records(run(lm, counting_task()))
    assert list(again) == ["toy"]
    assert again["toy"].sweep.jointly.others == {}
    assert again["toy"].variant == again["toy"].sweep.jointly.alone


def test_an_answer_cache_knows_the_choice_and_beside_which_tasks(make, tmp_path):
    path, cache = other_task(tmp_path), str(tmp_path / "cache")
    tasks = (counting_task(), str(path))
    first = run(make(sweep_jointly=True), *tasks, use_cache=cache)
    again = run(make(sweep_jointly=True), counting_task(), str(path), use_cache=cache)
    assert {name: task.variant for name, task in records(again).items()} == {
        name: task.variant for name, task in records(first).items()
    }
    assert all(task.from_answer_cache for task in records(again).values())
    assert texts(again) == texts(first)
    with pytest.raises(ArgumentError, match="sweep_jointly was mean, now worst"):
        run(make(sweep_jointly="worst"), *tasks, use_cache=cache)


def test_a_task_without_documents_is_refused_before_anything_is_swept(make, tmp_path):
    held = other_task(tmp_path / "held", "held", splits=("test",))
    with pytest.raises(ArgumentError, match="held has no validation or training documents"):
        run(make(sweep_jointly="worst"), counting_task(), str(held))
    assert not list((tmp_path / "sweeps").glob("*.jsonl"))
