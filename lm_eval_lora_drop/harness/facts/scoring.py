"""What a task makes of answers: its filters, and `process_results`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.harness.facts.requests import answered, new_request

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

    from lm_eval_lora_drop.harness.documents import Answer


def filter_names(task: Task) -> list[str]:
    """The task's filters, in their order."""
    return [str(one.name) for one in task._filters]


def answered_requests(task: Task, answer: Answer) -> list[Instance]:
    """The document's requests with their responses, as the harness has them; the task's own keep their state.

    What is decoded greedily is answered once, and copied for a task that asks `repeats` times.
    """
    document = answer.document
    each = document.repeats
    copies = 1 if each > 1 else int(getattr(task.config, "repeats", None) or 1)
    responses = [answer.responses[start : start + each] for start in range(0, len(answer.responses), each)]
    return [
        answered(request, document.doc, [*given] * copies)
        for request, given in zip(document.requests[::each], responses, strict=True)
    ]


def metrics_of(task: Task, answer: Answer, filter_name: str) -> dict[str, Any]:
    """Metric -> what the task's aggregation takes of this answer, behind one of the task's filters."""
    instances = answered_requests(task, answer)
    next(one for one in task._filters if one.name == filter_name).apply(instances)
    responses = [one.filtered_resps[filter_name] for one in instances]
    found: dict[str, Any] = task.process_results(answer.document.doc, responses)
    return found


def metric_names(task: Task) -> list[str]:
    """The metrics as lm-eval prints them, in their order.

    What a function of the task's own returns is known when it has been called: it is given a document's reference, and
    the task notes direction and aggregation of the names that come back.
    """
    names = list(task.aggregation())
    functions = getattr(task, "_metric_fn_list", {}).values()
    if task.OUTPUT_TYPE != "generate_until" or task.config.process_results is not None:
        return names
    if all(getattr(function, "__module__", "").startswith("lm_eval.api.") for function in functions):
        return names
    doc = task.eval_docs[0]
    target = task.doc_to_target(doc)
    text = str(target[0] if isinstance(target, list) and target else target)
    repeats = max(1, task.config.repeats or 1)
    blank = new_request("generate_until", ("", {}), doc=doc, metadata=(task.task_name, 0, repeats))
    request = answered(blank, doc, [text] * repeats)
    try:
        task._filters[0].apply([request])
        return list(task.process_results(doc, list(request.filtered_resps.values())))
    # A function of the user's may raise anything; on a real answer the harness says so itself.
    except Exception:  # noqa: BLE001
        return names
