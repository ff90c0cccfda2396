"""HotpotQA's prompt and scores."""

from __future__ import annotations

from typing import Any

from lm_eval_lora_drop.metrics.hotpotqa import contains, exact_match, f1
from lm_eval_lora_drop.metrics.shape import shape

TYPES = ("bridge", "comparison")


def doc_to_text(doc: dict[str, Any]) -> str:
    """All paragraphs, one a line with its title before it, then the question."""
    context = doc["context"]
    paragraphs = [
        f"{title}: {''.join(sentences).strip()}"
        for title, sentences in zip(context["title"], context["sentences"], strict=True)
    ]
    return "Context:\n" + "\n".join(paragraphs) + f"\n\nQuestion: {doc['question'].strip()}\nAnswer:"


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, float | None]:
    """The official scores, the paper's containment, both by question type, and the shape of the output."""
    prediction, answer = results[0].strip(), doc["answer"]
    scores = {"contains_em": contains(prediction, answer), "em": exact_match(prediction, answer)}
    by_type = {
        f"{name}_{kind}": score if doc["type"] == kind else None for kind in TYPES for name, score in scores.items()
    }
    return {**scores, "f1": f1(prediction, answer), **by_type, **shape(prediction, max_gen_toks)}
