"""Probes a model on documents: curves over the layers under several boundaries, and the boundary they speak for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.engine.probe.lens import MEASURES, read_layers
from lm_eval_lora_drop.engine.probe.moments import RESAMPLES, Bootstrap, Moments
from lm_eval_lora_drop.engine.probe.rise import CONFIDENCE, Rise, find_rise
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.harness.model import EncodedReference, HarnessModel, encode
from lm_eval_lora_drop.text import decimals_of_column, percent, with_error
from lm_eval_lora_drop.variant import Variant

Floats = NDArray[np.float64]

SCHEMA = 1
TOKENS = 4
# Documents are read in groups of this many, so that a batch holds documents of similar lengths and memory is bounded.
_GROUP = 16


class Curves:
    """What was read under one variant, summed over documents; the document itself is not kept."""

    def __init__(self, kept: Variant, tokens: int) -> None:
        shape = (kept.num_layers, tokens, len(MEASURES))
        self.kept = kept
        self.by_token = Moments(shape)
        self.over_tokens = Moments((shape[0], shape[2]))
        self.difference_by_token = Moments(shape[:2])
        self.difference_over_tokens = Moments(shape[:1])

    @property
    def name(self) -> str:
        """How figures and tables call it: full, base, `K = 20` or `0-14+20`."""
        if self.kept.adapter:
            return self.kept.label
        return "full" if self.kept.is_full else "base" if self.kept.is_base else self.kept.label

    def add(self, reading: Floats, full: Floats) -> None:
        """One more document: its `(L, T, 4)` reading under this variant, and that under the full adapter."""
        self.by_token.add(reading)
        self.over_tokens.add(np.nanmean(reading, axis=1))
        difference = reading[..., 0] - full[..., 0]
        self.difference_by_token.add(difference)
        self.difference_over_tokens.add(np.nanmean(difference, axis=1))

    def to_json(self) -> dict[str, Any]:
        """Means and standard errors by layer; tokens first, layers last."""
        return {
            "name": self.name,
            "boundary": self.kept.boundary,
            "layers": str(self.kept),
            "documents_by_token": self.by_token.count[0, :, 0].tolist(),
            "by_token": {
                measure: {
                    "mean": _plain(self.by_token.mean[..., index].T),
                    "stderr": _plain(self.by_token.stderr[..., index].T),
                }
                for index, measure in enumerate(MEASURES)
            },
            "over_tokens": {
                measure: {
                    "mean": _plain(self.over_tokens.mean[:, index]),
                    "stderr": _plain(self.over_tokens.stderr[:, index]),
                }
                for index, measure in enumerate(MEASURES)
            },
            "probability_less_full": {
                "by_token": {
                    "mean": _plain(self.difference_by_token.mean.T),
                    "stderr": _plain(self.difference_by_token.stderr.T),
                },
                "over_tokens": {
                    "mean": _plain(self.difference_over_tokens.mean),
                    "stderr": _plain(self.difference_over_tokens.stderr),
                },
            },
        }


@dataclass(frozen=True)
class ProbeResult:
    """Curves under each variant, the full adapter's first, and the rise point of the full adapter's curve.

    The curve is the probability of the reference token, averaged over the first `tokens` tokens of a document and then
    over `documents`; `left_out` more had an empty reference.
    """

    num_layers: int
    tokens: int
    documents: int
    left_out: int
    seed: int
    curves: tuple[Curves, ...]
    rise: Rise

    @property
    def boundary(self) -> int:
        """K by the rise point; the full adapter where the curve is flat, so that nothing is dropped without reason."""
        return self.num_layers if self.rise.boundary is None else self.rise.boundary

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the boundary doubtful."""
        found = tuple(f"probe: {warning}." for warning in self.rise.warnings)
        if self.rise.layer is None:
            found += (f"probe: without a rise point the full adapter is kept, boundary={self.num_layers}.",)
        if self.left_out:
            found += (f"probe: {self.left_out} documents with an empty reference were left out.",)
        return found

    def to_json(self) -> dict[str, Any]:
        """The `probe` object of a results file, and of probe.json."""
        return {
            "schema": SCHEMA,
            "num_layers": self.num_layers,
            "tokens": self.tokens,
            "documents": self.documents,
            "left_out": self.left_out,
            "boundary": self.boundary,
            "rise": {
                "method": "kneedle",
                "layer": self.rise.layer,
                "interval": self.rise.interval,
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "seed": self.seed,
                "climb": _plain(self.rise.climb),
                "climb_stderr": _plain(self.rise.climb_stderr),
                "rises": list(self.rise.rises),
            },
            "curves": [curves.to_json() for curves in self.curves],
            "warnings": list(self.warnings),
        }

    def table(self) -> str:
        """A line per layer: probability of the reference token and its standard error under each variant."""
        width = max(17, *(len(curves.name) for curves in self.curves))
        head = f"Probability of the first {self.tokens} reference tokens by layer, mean ± standard error, "
        lines = [head + f"{self.documents} documents", "layer" + "".join(f"  {c.name:>{width}}" for c in self.curves)]
        # tolist: plain floats, a column of one number of decimals per variant.
        places = [
            decimals_of_column(zip(c.over_tokens.mean[:, 0].tolist(), c.over_tokens.stderr[:, 0].tolist(), strict=True))
            for c in self.curves
        ]
        for layer in range(self.num_layers):
            cells = [
                with_error(curves.over_tokens.mean[layer, 0], curves.over_tokens.stderr[layer, 0], decimals)
                for curves, decimals in zip(self.curves, places, strict=True)
            ]
            mark = "  rise point" if layer == self.rise.layer else ""
            lines.append(f"{layer:5d}" + "".join(f"  {cell:>{width}}" for cell in cells) + mark)
        lines.append(self.summary())
        return "\n".join([*lines, *(f"Note: {warning}" for warning in self.warnings)])

    def summary(self) -> str:
        """The rise point and the boundary in a sentence."""
        if self.rise.layer is None or self.rise.interval is None:
            return f"No rise point; boundary K = {self.boundary}."
        first, last = self.rise.interval
        return (
            f"Rise point: layer {self.rise.layer} ({percent(CONFIDENCE)} of bootstrap resamples: {first} to {last}); "
            f"boundary K = {self.boundary}."
        )


def probe(
    lm: HarnessModel,
    layers: AdapterLayers,
    pairs: Iterable[tuple[str, str]],
    variants: Sequence[Variant] = (),
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> ProbeResult:
    """Read every decoder layer at the first `tokens` tokens of each reference, with the full adapter and `variants`.

    Args:
        lm: an lm-eval HFLM: its tokenizer and `max_length` are used.
        layers: the adapter of `lm.model`.
        pairs: prompt and reference of each document, the reference with the delimiter that precedes it.
        variants: further ones; the full adapter is always read, and comes first.
        seed: of the bootstrap.

    Raises:
        ArgumentError: fewer than two documents have a reference, or `tokens` is below 1.
    """
    if tokens < 1:
        raise ArgumentError(f"The probe reads at least 1 reference token, got {tokens}.")
    full = Variant.full(layers.num_layers)
    curves = [Curves(kept, tokens) for kept in dict.fromkeys((full, *variants))]
    bootstrap = Bootstrap(layers.num_layers, seed=seed)
    documents = left_out = 0
    with tqdm(desc="probe", unit="document", disable=not progress) as bar:
        for group, empty in _groups(lm, pairs, tokens):
            left_out += empty
            readings = []
            for one in curves:
                with layers.keep(one.kept):
                    readings.append(read_layers(layers, group, tokens))
            for index in range(len(group)):
                for one, reading in zip(curves, readings, strict=True):
                    one.add(reading[index], readings[0][index])
                bootstrap.add(np.nanmean(readings[0][index, ..., 0], axis=1))
            documents += len(group)
            bar.update(len(group))
    if documents < 2:
        raise ArgumentError(
            f"The probe needs at least two documents with a reference answer, got {documents} (and {left_out} with an "
            "empty one). Raise the limit, or give the boundary: boundary=K."
        )
    rise = find_rise(curves[0].over_tokens.mean[:, 0], bootstrap.means)
    return ProbeResult(layers.num_layers, tokens, documents, left_out, seed, tuple(curves), rise)


def probe_boundary(
    lm: HarnessModel,
    layers: AdapterLayers,
    pairs: Iterable[tuple[str, str]],
    *,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> ProbeResult:
    """`probe` of the full adapter alone, one pass over the documents: `boundary` and `to_json()` are what a run needs.

    Raises:
        ArgumentError: as `probe`.
    """
    return probe(lm, layers, pairs, tokens=tokens, seed=seed, progress=progress)


def _groups(
    lm: HarnessModel, pairs: Iterable[tuple[str, str]], tokens: int
) -> Iterable[tuple[list[EncodedReference], int]]:
    """Groups of encoded documents, and how many were left out on the way because their reference is empty."""
    group: list[EncodedReference] = []
    empty = 0
    for prompt, reference in pairs:
        encoded = encode(lm, prompt, reference, tokens)
        if encoded is None:
            empty += 1
            continue
        group.append(encoded)
        if len(group) == _GROUP:
            yield group, empty
            group, empty = [], 0
    if group or empty:
        yield group, empty


def _plain(values: Any) -> Any:
    """Six significant digits; NaN as None."""
    if isinstance(values, float):
        return None if np.isnan(values) else float(f"{values:.6g}")
    return [_plain(value) for value in values.tolist()] if isinstance(values, np.ndarray) else [*map(_plain, values)]
