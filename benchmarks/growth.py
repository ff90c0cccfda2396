"""How both passes grow with the number of layers L: layer passes and seconds for all L + 1 boundaries of one prompt.

Random Llama models of one width, a log-likelihood request each, so that nothing but prefills is measured. A JSON line
for each L; --figure draws them with the formula: (L + 1)(L + 2) / 2 - 1 row-layers shared, (L + 1) L plain.

    python benchmarks/growth.py --figure docs/figures/growth
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import torch
from lm_eval.api.instance import Instance

from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.sweep.backend import Work

sys.path.insert(0, str(common.ROOT))
from testing.tiny import SIZES, make_adapter, make_base

WIDTH = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(2)
    SIZES.update(WIDTH)
    rows = [measure(number, args.tokens, args.documents) for number in args.layers]
    if args.figure:
        draw(rows, args.figure)


def measure(num_layers: int, tokens: int, documents: int) -> dict[str, float]:
    """Both passes over all boundaries of a model with `num_layers` layers."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(Path(folder) / "base", num_layers=num_layers)
        adapter = make_adapter(base, Path(folder) / "adapter")
        lm = LoraDropLM(str(base), str(adapter), boundary="full", device="cpu", dtype="float32", batch_size=documents)
        text = "".join(chr(97 + i % 26) for i in range(tokens))
        work = []
        for i in range(documents):
            request = Instance("loglikelihood", {}, (text[i:], " yes"), 0)
            work.append(Work(Document(i, {}, (request,), str(i)), common.every_boundary(num_layers)))
        counters = Counters()
        common.timed(shared_runner(lm, lm.layers), work[:1])  # warm up
        shared_seconds, _ = common.timed(shared_runner(lm, lm.layers, counters=counters), work)
        with counted(lm.layers.decoder_layers) as plain_rows:
            plain_seconds, _ = common.timed(plain_runner(lm, lm.layers), work)
    row = {
        "num_layers": num_layers,
        "layer_rows_shared": counters.layer_rows // documents,
        "layer_rows_plain": plain_rows[0] // documents,
        "formula_shared": shared_passes(num_layers),
        "formula_plain": plain_passes(num_layers),
        "shared_seconds": shared_seconds,
        "plain_seconds": plain_seconds,
        "ratio": plain_seconds / shared_seconds,
    }
    common.emit(benchmark="growth", **row)
    return row


def shared_passes(num_layers: int) -> int:
    """A prompt's layer passes for all boundaries: the row of boundary K takes layers K to L - 1 of its own."""
    return (num_layers + 1) * (num_layers + 2) // 2 - 1


def plain_passes(num_layers: int) -> int:
    """L + 1 times through L layers."""
    return (num_layers + 1) * num_layers


@contextmanager
def counted(decoder_layers: Iterable[torch.nn.Module]) -> Iterator[list[int]]:
    """Counts the rows that pass through these layers."""
    rows = [0]

    def count(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows[0] += args[0].shape[0]

    handles = [layer.register_forward_pre_hook(count) for layer in decoder_layers]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def draw(rows: list[dict[str, float]], stem: Path) -> None:
    """Layer passes with the formula, and seconds, over L."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from lm_eval_lora_drop.show.figures.style import BLUE, STYLE, VERMILLION, save_figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3), layout="constrained")
        left, right = figure.subplots(1, 2)
        layers = [row["num_layers"] for row in rows]
        every = range(min(layers), max(layers) + 1)
        left.plot(every, [plain_passes(n) for n in every], "--", color=VERMILLION, label="(L + 1) L")
        left.plot(every, [shared_passes(n) for n in every], "-", color=BLUE, label="(L + 1)(L + 2) / 2 - 1")
        for axes, plain, shared, label, line in (
            (left, "layer_rows_plain", "layer_rows_shared", "layer passes per document", ""),
            (right, "plain_seconds", "shared_seconds", "seconds for all boundaries", "-"),
        ):
            axes.plot(layers, [row[plain] for row in rows], f"s{2 * line}", color=VERMILLION, label="plain pass")
            axes.plot(layers, [row[shared] for row in rows], f"o{line}", color=BLUE, label="shared pass")
            axes.set_xticks(layers)
            axes.set_xlabel("decoder layers L")
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
            axes.legend()
    save_figure(figure, stem, ["png"])


if __name__ == "__main__":
    main()
