"""`sweep_metric=reference_loglikelihood`: rank the boundaries by how likely they make the reference answer.

Nothing is generated: each document becomes one loglikelihood request, which the shared pass answers for every boundary
at once. It ranks boundaries much like the task's metric does, but tends to grow with K all the way to L where the
metric has its peak below (docs/howto/probe.md): it serves where generating is too dear, and is no replacement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.facts.aggregations import mean
from lm_eval_lora_drop.harness.facts.requests import new_request
from lm_eval_lora_drop.harness.model import Encoder, encode_pair
from lm_eval_lora_drop.record.fingerprint import digest_text
from lm_eval_lora_drop.record.metric import MetricSpec
from lm_eval_lora_drop.statistics.aggregation import Aggregation
from lm_eval_lora_drop.sweep.score import Scorer

REFERENCE_LOGLIKELIHOOD = "reference_loglikelihood"


def reference_documents(documents: Sequence[Document], references: Sequence[str]) -> tuple[Document, ...]:
    """The documents, each asking for the log-likelihood of its reference after the prompt of its first request.

    `references` are what follows the prompts, delimiters included (`sweep.documents.references`). A document with a
    blank one is left out.

    Raises:
        ArgumentError: all are blank.
    """
    found = tuple(
        _document(document, reference)
        for document, reference in zip(documents, references, strict=True)
        if reference.strip()
    )
    if not found:
        raise ArgumentError(
            f"sweep_metric={REFERENCE_LOGLIKELIHOOD} needs reference answers, and the task's doc_to_target gives none. "
            "Choose a metric of the task."
        )
    return found


class ReferenceLoglikelihood(Scorer):
    """Scores such documents: nats per token, the mean over documents, each counting the same whatever its length."""

    def __init__(self, lm: Encoder, documents: Sequence[Document]) -> None:
        """`lm` encodes as an lm-eval HFLM does; `documents` come from `reference_documents`."""
        self.metric = MetricSpec(REFERENCE_LOGLIKELIHOOD, "none", higher_is_better=True)
        self.aggregation = Aggregation(mean)
        self._tokens = {document.key: _count_tokens(lm, document) for document in documents}

    def item(self, answer: Answer) -> float | None:
        """Log-likelihood of the reference divided by its number of tokens, in nats; None where it has no token."""
        tokens = self._tokens[answer.document.key]
        return float(answer.responses[0][0]) / tokens if tokens else None


def _document(document: Document, reference: str) -> Document:
    first = document.requests[0]
    arguments = (str(first.args[0]), reference)
    request = new_request("loglikelihood", arguments, doc=document.doc, metadata=first.metadata)
    text = json.dumps(["loglikelihood", *arguments], ensure_ascii=False)
    return Document(document.doc_id, document.doc, (request,), digest_text(text), document.cluster)


def _count_tokens(lm: Encoder, document: Document) -> int:
    prompt, reference = document.requests[0].args
    return len(encode_pair(lm, prompt, reference)[1])
