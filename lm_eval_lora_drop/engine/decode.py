"""Greedy decoding of many rows, each with the boundary it belongs to; finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lm_eval_lora_drop.engine.branching import Branches
from lm_eval_lora_drop.engine.cache import RowCache
from lm_eval_lora_drop.engine.requests import Rules, StopWatch, encode_prompts

# A finished row costs its share of every step, leaving costs one copy of the cache: it leaves in company.
LEAVING_SHARE = 0.04


@dataclass
class Row:
    """One document under one boundary, and what it has said."""

    boundary: int
    document: int
    said: list[int] = field(default_factory=list)


def generate(
    lm: Any, prompts: Sequence[str], rules: Rules, boundaries: Sequence[int], branches: Branches | None
) -> dict[tuple[int, int], str]:
    """Answer every prompt under every boundary.

    With `branches` (whose wrappers are on) all boundaries run at once. Without, the model answers as it is, and
    `boundaries` names the one that it stands for.

    Returns:
        (boundary, index of the prompt) -> text.
    """
    rows = [Row(boundary, i) for boundary in sorted(boundaries, reverse=True) for i in range(len(prompts))]
    everyone = list(rows)
    tokens, mask = encode_prompts(lm, prompts, rules)
    cache = RowCache(
        lm.model.config.get_text_config(decoder=True).num_hidden_layers, tokens.shape[1] + rules.max_new_tokens
    )
    with torch.inference_mode():
        newest = _prefill(lm, tokens, mask, cache, rows, branches)
        mask = mask[torch.tensor([row.document for row in rows], device=mask.device)]
        watch = StopWatch(lm, rules)
        done = [False] * len(rows)
        while True:
            _take_down(rows, newest, done, rules, watch)
            if all(done):
                break
            if sum(done) > LEAVING_SHARE * len(rows):
                staying = [index for index, finished in enumerate(done) if not finished]
                rows, done = [rows[index] for index in staying], [False] * len(staying)
                kept = torch.tensor(staying, device=mask.device)
                mask, newest = mask[kept], newest[kept]
                cache.select(kept)
            if branches is not None:
                branches.decode([row.boundary for row in rows])
            positions = mask.sum(1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            newest = _forward(lm, newest[:, None], mask, positions, cache).argmax(-1)
    return {(row.boundary, row.document): rules.text(lm, row.said) for row in everyone}


def _prefill(
    lm: Any, tokens: torch.Tensor, mask: torch.Tensor, cache: RowCache, rows: Sequence[Row], branches: Branches | None
) -> torch.Tensor:
    """Read the prompts; the rows' first tokens, and the cache with one entry per row."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    documents = len(tokens)
    if branches is None:
        return _forward(lm, tokens, mask, positions, cache).argmax(-1)
    with branches.prefill(documents, [row.boundary for row in rows]):
        logits = _forward(lm, tokens, mask, positions, cache)

    def indices(layer: int | None) -> torch.Tensor:
        found = [branches.slot(row.boundary, layer) * documents + row.document for row in rows]
        return torch.tensor(found, device=tokens.device)

    for index, layer in enumerate(cache.rows):
        layer.select(indices(index))
    return logits[indices(None)].argmax(-1)


def _forward(
    lm: Any, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: RowCache
) -> torch.Tensor:
    """Logits of the last position, (rows, vocabulary)."""
    with torch.autocast(
        device_type=lm.device.type, dtype=lm.mixed_precision_dtype, enabled=lm.mixed_precision_dtype is not None
    ):
        output = lm.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def _take_down(rows: Sequence[Row], newest: torch.Tensor, done: list[bool], rules: Rules, watch: StopWatch) -> None:
    """Write the newest tokens down and note who is done."""
    speaking = []
    for index, (row, token) in enumerate(zip(rows, newest.tolist(), strict=True)):
        if done[index]:
            continue
        row.said.append(token)
        done[index] = token in rules.end_tokens or len(row.said) >= rules.max_new_tokens
        if not done[index]:
            speaking.append(index)
    for index, met in zip(speaking, watch.met([rows[index].said for index in speaking]), strict=True):
        done[index] = met
