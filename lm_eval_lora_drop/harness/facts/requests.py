"""Requests that lm-eval has not built: made by hand, or copied with answers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

RequestType = Literal["generate_until", "loglikelihood", "loglikelihood_rolling"]


def new_request(
    request_type: RequestType,
    arguments: tuple[Any, ...],
    *,
    doc: Any = None,
    index: int = 0,
    metadata: tuple[str | None, int | None, int | None] = (None, None, None),
) -> Instance:
    """A request: of which document, its place among the document's requests, and (task, document, repeats)."""
    return Instance(request_type, {} if doc is None else doc, arguments, index, metadata)


def answered(request: Instance, doc: Any, responses: Sequence[Any]) -> Instance:
    """A copy of a request with its responses, one for each repeat; the request keeps its state."""
    return Instance(
        request_type=request.request_type,
        doc=doc,
        arguments=request.arguments,
        idx=request.idx,
        metadata=request.metadata,
        resps=list(responses),
    )


def no_answer_cache() -> CacheHook:
    """What a model holds in the place of `--use_cache`'s file where nothing may be written to it."""
    return CacheHook(None)
