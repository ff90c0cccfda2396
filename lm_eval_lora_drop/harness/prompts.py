"""The one builder of a task's prompts and reference answers: for sweeps, probes, training data and the demo.

Prompts come from the harness's own `fewshot_context` and `construct_requests`; the reference answer follows the rules
by which the harness writes the answers of few-shot examples (`ConfigurableTask.build_qa_turn`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.api.utils import maybe_delimit

from lm_eval_lora_drop.harness.documents import Binding, Document


def build(binding: Binding, doc_id: int, doc: Any, cluster: str | None = None) -> Document:
    """The requests of one document, by the same two calls as `Task.build_all_requests`."""
    task, given = binding.task, binding.prompt_arguments
    chat = {
        "apply_chat_template": bool(given.get("apply_chat_template")),
        "chat_template": given.get("chat_template"),
    }
    made = task.construct_requests(
        doc=doc,
        ctx=_context(task, doc, task.config.num_fewshot or 0, given),
        metadata=(task.config["task"], doc_id, 1),
        **chat,
    )
    return document_of(doc_id, doc, made if isinstance(made, list) else [made], task.config.repeats, cluster)


def document_of(doc_id: int, doc: Any, once: Sequence[Instance], repeats: int, cluster: str | None = None) -> Document:
    """A document with its requests, each of them `repeats` times where asking again may give another answer."""
    repeats = repeats if any(map(_may_sample, once)) else 1
    requests = tuple(request for request in once for _ in range(repeats))
    text = json.dumps([[request.request_type, *request.args] for request in requests], ensure_ascii=False, default=str)
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Document(doc_id, doc, requests, key, cluster, repeats)


def _may_sample(request: Instance) -> bool:
    """Whether asking again may give another answer; where a task says nothing, hf decodes greedily and vllm samples."""
    if request.request_type != "generate_until":
        return False
    settings = request.args[1]
    chosen = settings.get("do_sample")
    return settings.get("temperature") != 0 if chosen is None else bool(chosen)


def has_several_inputs(task: Task) -> bool:
    """Whether each choice stands in a prompt of its own, before a continuation that all of them share."""
    return bool(getattr(task, "multiple_input", 0))


def reference(task: Task, doc: Any) -> str:
    """The right answer as it follows the prompt, delimiter included: of several the first, of a choice its text."""
    answer = task.doc_to_target(doc)
    if isinstance(answer, (list, tuple)):
        answer = answer[0]
    # With several inputs the choices stand in the prompts, and the target is a text already.
    if isinstance(answer, int) and task.config.doc_to_choice is not None and not has_several_inputs(task):
        answer = task.doc_to_choice(doc)[answer]
    answer = str(answer)
    prefix = task.doc_to_prefix(doc)
    if prefix:  # it ends the prompt, and what separates it from the answer is the harness's rule, not the task's
        return maybe_delimit(prefix, answer)[len(prefix) :]
    return (task.config.target_delimiter or "") + answer


def references(binding: Binding, documents: Sequence[Document]) -> list[str]:
    """The reference answer of each document as the harness would append it to the prompt, delimiter included."""
    return [reference(binding.task, document.doc) for document in documents]


def pairs(binding: Binding, documents: Sequence[Document]) -> list[tuple[str, str]]:
    """The prompt of each document's first request, and its reference answer."""
    prompts = (str(document.requests[0].args[0]) for document in documents)
    return list(zip(prompts, references(binding, documents), strict=True))


def example(task: Task, doc: Any, prompt_arguments: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Prompt and reference answer of a training document: what lm-eval will ask without few-shot examples, and expect.

    `prompt_arguments` are those of `Task.build_all_requests` (`system_instruction`, `apply_chat_template`, ...).
    """
    context = _context(task, doc, 0, prompt_arguments or {})
    if isinstance(context, list):  # several inputs: the prompt is the one that the label names
        context = context[task.doc_to_text(doc)]
    return context, reference(task, doc)


def shown_text(task: Task, doc: Any) -> str:
    """What a model reads of this document, template included, few-shot examples and right answer left out."""
    text = task.doc_to_text(doc)
    if has_several_inputs(task):
        return "\n".join([*task.doc_to_choice(doc), str(task.doc_to_target(doc))])
    parts = [str(text)]
    if task.OUTPUT_TYPE == "multiple_choice":
        parts += map(str, task.doc_to_choice(doc))
    # Language modelling: the text to be read is the target.
    if not any(part.strip() for part in parts) or task.OUTPUT_TYPE == "loglikelihood_rolling":
        parts.append(str(task.doc_to_target(doc)))
    return "\n".join(parts)


def _context(task: Task, doc: Any, num_fewshot: int, given: Mapping[str, Any]) -> Any:
    """The prompt, or with several inputs one for each choice."""
    return task.fewshot_context(
        doc,
        num_fewshot=num_fewshot,
        system_instruction=given.get("system_instruction"),
        apply_chat_template=bool(given.get("apply_chat_template")),
        fewshot_as_multiturn=bool(given.get("fewshot_as_multiturn")),
        chat_template=given.get("chat_template"),
        gen_prefix=task.doc_to_prefix(doc),
    )
