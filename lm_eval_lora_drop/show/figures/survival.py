"""The figure of a merge: how much of the LoRA the merged weights hold, by decoder layer and kind of module."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lm_eval_lora_drop.adapter.fold import Survival, projection
from lm_eval_lora_drop.show.figures.axes import layer_axis
from lm_eval_lora_drop.show.figures.style import STYLE, or_warn, save_figure


def survival_figure(survival: Survival) -> Figure:
    """A cell for each layer and kind of module; one without LoRA stays white, LoRA outside the layers left of them."""
    kinds = sorted({kind for _, kind in survival.parts})
    known = [layer for layer, _ in survival.parts if layer is not None]
    outside = any(layer is None for layer, _ in survival.parts)
    layers = max(known, default=-1) + 1
    # Column 0 is what lies outside the layers.
    values = np.full((len(kinds), layers + 1), np.nan)
    for (layer, kind), products in survival.parts.items():
        values[kinds.index(kind), 0 if layer is None else layer + 1] = projection([products])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.3 + 0.28 * len(kinds)), layout="constrained")
        axes = figure.subplots()
        cells = axes.pcolormesh(
            np.arange(-1.5, layers), np.arange(len(kinds) + 1), values, cmap="cividis", vmin=0, vmax=1
        )
        axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
        axes.invert_yaxis()
        axes.grid(visible=False)
        layer_axis(axes, max(layers, 1))
        if outside:
            axes.set_xlim(-1.5, layers - 0.5)
            axes.set_xlabel("decoder layer (from 0); left of them: outside the layers")
        axes.set_title(f"Share of the LoRA that survives a merge in {survival.dtype}: {survival.total:.3f}")
        figure.colorbar(cells, ax=axes, label="share that is left")
    return figure


def save_survival_figure(survival: Survival, folder: Path) -> list[Path]:
    """Write `survival.png` to the folder; nothing, and a warning, where that fails or nothing was merged."""
    if not survival.parts:
        return []
    return or_warn(
        lambda: save_figure(survival_figure(survival), folder / "survival", ("png",)),
        "lora-drop check --peft ADAPTER --output FOLDER",
    )
