"""The reference's log-likelihood per token as a sweep's metric: against a calculation token by token."""

import math

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.sweep.documents.reference_likelihood import ReferenceLoglikelihood, reference_documents
from lm_eval_lora_drop.variant import Variant

PROMPTS = ["the question is", "1 + 1 =", "a text with a blank at its end "]
REFERENCES = [" the answer is in the text", " 2", "of the other"]


@pytest.fixture(scope="module")
def lm(tiny_base, tiny_adapter):
    return LoraDropLM(str(tiny_base), str(tiny_adapter), boundary="full", device="cpu", dtype="float32")


def generating(prompts=PROMPTS):
    """What a generate_until task asks."""
    return [
        Document(index, {"n": index}, (Instance("generate_until", {}, (prompt, {"until": []}), 0),), f"key {index}")
        for index, prompt in enumerate(prompts)
    ]


def by_hand(lm, prompt, reference):
    """Mean over the reference's tokens of the log-probability after everything before it, one forward pass each."""
    context, continuation = lm._encode_pair(prompt, reference)
    logs = []
    for token in continuation:
        with torch.no_grad():
            logs.append(lm.model(torch.tensor([context])).logits[0, -1].log_softmax(0)[token].item())
        context = [*context, token]
    return np.mean(logs)


@pytest.mark.parametrize("make_runner", [plain_runner, shared_runner])
def test_every_boundary_scores_as_by_hand(lm, make_runner):
    documents = reference_documents(generating(), REFERENCES)
    scorer = ReferenceLoglikelihood(lm, documents)
    runner = make_runner(lm, lm.layers)
    items = {}
    for answers in runner([Work(document, tuple(Variant.below(k, 4) for k in (4, 2, 0))) for document in documents]):
        for answer in answers:
            items[answer.variant.boundary, answer.document.doc_id] = scorer.item(answer)
    for boundary in (4, 2, 0):
        with lm.layers.keep(Variant.below(boundary, 4)):
            for index, pair in enumerate(zip(PROMPTS, REFERENCES, strict=True)):
                assert items[boundary, index] == pytest.approx(by_hand(lm, *pair), abs=1e-5)


def test_documents_keep_their_identity_and_get_keys_of_their_own():
    documents = generating()
    asked = reference_documents(documents, REFERENCES)
    assert [document.doc_id for document in asked] == [0, 1, 2]
    assert [document.doc for document in asked] == [document.doc for document in documents]
    assert [document.requests[0].args for document in asked] == list(zip(PROMPTS, REFERENCES, strict=True))
    others = reference_documents(documents, [" other", *REFERENCES[1:]])
    keys = {document.key for document in (*documents, *asked, *others)}
    assert len(keys) == 3 + 3 + 1


def test_blank_references_are_left_out_and_a_task_without_any_is_refused():
    assert [document.doc_id for document in reference_documents(generating(), ["", " a", " "])] == [1]
    with pytest.raises(ArgumentError, match="doc_to_target gives none"):
        reference_documents(generating(), ["", " ", "\n"])


def test_score_and_standard_error_are_of_the_mean_over_documents(lm):
    documents = reference_documents(generating(), REFERENCES)
    scorer = ReferenceLoglikelihood(lm, documents)
    tokens = [len(lm._encode_pair(*document.requests[0].args)[1]) for document in documents]
    items = [
        scorer.item(Answer(4, document, ((-2.0 * count * (index + 1), False),)))
        for index, (document, count) in enumerate(zip(documents, tokens, strict=True))
    ]
    assert items == pytest.approx([-2.0, -4.0, -6.0])
    assert scorer.aggregate(items) == pytest.approx(-4.0)
    assert scorer.stderr(items) == pytest.approx(2.0 / math.sqrt(3))
    assert math.isnan(scorer.stderr(items[:1]))
    assert scorer.metric.higher_is_better
