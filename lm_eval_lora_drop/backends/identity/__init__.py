"""What an answer depends on: the one builder behind the names of journals and the guard of answer caches.

The rule: whatever is not in `WHERE_AND_HOW_FAST` is part of the identity, also an argument that nobody has thought of.
Backend-free; what is in memory is read by `loaded`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_lora_drop.options import LoraDropArgs, answer_changing, neutral
from lm_eval_lora_drop.record.fingerprint import described

WHERE_AND_HOW_FAST = frozenset({"device", "batch_size", "max_batch_size", *neutral(LoraDropArgs)})
"""The arguments, of the harness and ours, that decide where and how fast answers are computed and not what they are:
tests/backends/test_identity.py compares the answers under two values of each."""


def identity(
    args: LoraDropArgs,
    *,
    backend: str,
    adapter: Mapping[str, Any],
    base: Mapping[str, Any],
    dtype: str,
    model_args: Mapping[str, Any],
    loaded: Mapping[str, Any],
) -> dict[str, Any]:
    """What changes an answer, apart from the request and the variant, as JSON has it.

    Args:
        args: ours. Those that choose what is asked (`asks`) are not in it: each line of a journal names its variant
            and its prompt, so that another `sweep_limit` or `sweep_metric` reads the same answers.
        backend: hf or vllm, whose kernels round differently.
        adapter: as `record.schema.AdapterRecord`.
        base: as `record.schema.BaseRecord`.
        dtype: of the base model's weights.
        model_args: the harness's own arguments as they were given.
        loaded: what the backend sees of the model itself (`loaded`).
    """
    return {
        "adapter": dict(adapter),
        "base": dict(base),
        "dtype": dtype,
        "backend": backend,
        "model_args": {name: described(value) for name, value in sorted(model_args.items()) if _counts(name)},
        "arguments": {name: value for name, value in answer_changing(args).items() if not asks(name)},
        "loaded": described(loaded),
    }


def decision(args: LoraDropArgs) -> dict[str, Any]:
    """What decides which variant answers, beside the identity: an answer cache holds the answers of one decision."""
    return answer_changing(args)


def asks(name: str) -> bool:
    """Whether an argument of ours chooses candidates, documents or the winner: what is asked, not what is answered."""
    return name in ("boundary", "layers") or name.startswith("sweep_")


def _counts(name: str) -> bool:
    return name not in WHERE_AND_HOW_FAST
