"""Prompts and reference answers of a task's documents, exactly as lm-eval asks and expects them.

The words come from the one builder of prompts (`validation`); this file is all that `train` uses of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2.exceptions import TemplateError

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness import prompts
from lm_eval_lora_drop.harness.documents import Binding, Document
from lm_eval_lora_drop.harness.fields import cluster_of
from lm_eval_lora_drop.harness.splits import shows_evaluated
from lm_eval_lora_drop.harness.task_index import load_task
from lm_eval_lora_drop.sweep.documents import fewshot
from lm_eval_lora_drop.sweep.documents.leaks import Guard
from lm_eval_lora_drop.train.settings import TaskSettings


@dataclass(frozen=True)
class Example:
    """One document as text: what the model reads, and what it should say.

    `generates` says that the answer is generated at evaluation and so has to end by itself; else its likelihood is
    scored. `doc_id` is the document's index in its split.
    """

    doc_id: int
    prompt: str
    answer: str
    generates: bool


def load_binding(settings: TaskSettings, tokenizer: Any = None) -> Binding:
    """The task as an evaluation with these settings would use it.

    Raises:
        ArgumentError: no such task, a group, data that cannot be loaded, or a chat template is missing.
    """
    task = load_task(settings.task, settings.include_path or None, settings.metadata)
    if settings.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    template = chat_template(tokenizer) if settings.apply_chat_template else None
    return Binding(
        task,
        {
            "system_instruction": settings.system_instruction,
            "apply_chat_template": settings.apply_chat_template,
            "fewshot_as_multiturn": settings.fewshot_as_multiturn,
            "chat_template": template,
        },
    )


def chat_template(tokenizer: Any) -> Callable[..., str]:
    """Renders messages as `HFLM.apply_chat_template` does (lm_eval/models/huggingface.py), without a model.

    Raises:
        ArgumentError: the tokenizer has no template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ArgumentError(
            "apply_chat_template needs a tokenizer with a chat template, and this one has none. Train without it, and "
            "evaluate without --apply_chat_template."
        )

    def render(chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        apply = partial(
            tokenizer.apply_chat_template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        try:
            return apply(chat_history)
        except TemplateError:
            # Some templates know no system role; the harness leaves it out for them.
            return apply([message for message in chat_history if message["role"] != "system"])

    return render


@contextmanager
def example_builder(binding: Binding, seed: int) -> Iterator[Callable[[int, Any], Example]]:
    """Within the context, makes the example of a document (its index in the split, the document); few-shot examples
    are drawn by `seed` in the order of the calls, and none of them is evaluated.

    Raises:
        ArgumentError: when called, where the task asks nothing that has an answer (perplexity of a text).
    """
    task = binding.task
    # Its texts are made for nothing where there are no examples to be compared with them.
    guard: Any = Guard(task, list(task.training_docs()), ()) if task.config.num_fewshot else None
    with fewshot.own_examples(task, seed, guard, cluster_of(task), (), shows_evaluated(task)) as shown:

        def build(doc_id: int, doc: Any) -> Example:
            if shown is not None:
                shown.doc = doc
            document = prompts.build(binding, doc_id, doc)
            return _example(binding, document, prompts.reference(task, doc))

        yield build


def _example(binding: Binding, document: Document, answer: str) -> Example:
    request = document.requests[0]
    if request.request_type == "loglikelihood_rolling":
        raise ArgumentError(
            f"{binding.name} scores the likelihood of whole texts: it has no prompt and no answer to train on. Name a "
            "task that asks something."
        )
    if request.request_type == "loglikelihood":
        request = _right(binding, document, answer)
        return Example(document.doc_id, str(request.args[0]), str(request.args[1]), generates=False)
    if binding.prompt_arguments["apply_chat_template"] and not binding.task.doc_to_prefix(document.doc):
        # An assistant's turn begins with the answer itself, as the harness's own choices do under a chat template.
        answer = answer.removeprefix(binding.task.config.target_delimiter or "")
    return Example(document.doc_id, str(request.args[0]), answer, generates=True)


def _right(binding: Binding, document: Document, answer: str) -> Any:
    """The request that scores the right answer, of one per choice; it carries the scored text, delimiter and all."""
    if len(document.requests) == 1:
        return document.requests[0]
    if prompts.has_several_inputs(binding.task):
        # Choices stand in the contexts; the task's "text" is the index of the right one.
        return document.requests[int(binding.task.doc_to_text(document.doc))]
    # The first with that text: unconditional scores (acc_mutual_info) come behind, with the same texts.
    found = next((one for one in document.requests if str(one.args[1]).strip() == answer.strip()), None)
    if found is None:
        raise ArgumentError(
            f"{binding.name}: the reference of document {document.doc_id}, {answer.strip()[:60]!r}, is not one of its "
            "choices. Correct doc_to_target or doc_to_choice of the task."
        )
    return found
