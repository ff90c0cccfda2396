"""What a sweep would take on a GPU that nobody here has: calculated, not measured (docs/evidence/performance.md).

A forward takes the longest of three times: its products at a share of the vendor's peak rate, reading the weights once
at a share of the bandwidth, and launching its kernels from Python, which decides where batches are small. One after
another, every candidate reads all prompts and decodes in batches of `--batch-size`. The shared pass reads each prompt
through the layer states that differ, L (L + 3) / 2 in place of L (L + 1), and decodes all candidates of all documents
in batches as large as memory allows, taken here as if they shared nothing after the prompt.

    python -m benchmarks.cost
    python -m benchmarks.cost --documents 200 --prompt 1500 --answer 8
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from tabulate import tabulate

from lm_eval_lora_drop.engine.memory import RowSize

# An H100 SXM by its data sheet: bf16 operations a second without sparsity, bytes a second of its memory, its bytes.
PEAK, BANDWIDTH, MEMORY = 989e12, 3.35e12, 80e9
OF_PEAK, OF_BANDWIDTH = 0.4, 0.6
# Seconds a decoder layer's kernels take to launch from Python, and how many times as many a forward of
# the shared pass may launch (tests/engine/test_pretend_device.py).
LAUNCHES, MORE_LAUNCHES = 0.9e-3, 1.25


@dataclass(frozen=True)
class Model:
    """Sizes from the model's config.json; `gpus` hold it in bf16, layers spread over them, one at work at a time."""

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head: int
    gpus: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head

    def forward(self, tokens: float, launches: float = 1.0) -> float:
        """Seconds of one forward over `tokens` tokens."""
        products = 2 * self.parameters * tokens / (PEAK * OF_PEAK)
        weights = 2 * self.parameters / (BANDWIDTH * OF_BANDWIDTH)
        return max(products, weights, self.layers * LAUNCHES * launches)


MODELS = (Model("Llama-3.1-8B", 8.03e9, 32, 8, 128, 1), Model("Llama-3.1-70B", 70.6e9, 80, 8, 128, 4))


def plain(model: Model, documents: int, prompt: int, answer: int, batch: int) -> float:
    """Seconds of all boundaries, one after another."""
    batches = math.ceil(documents / batch)
    return (model.layers + 1) * batches * (model.forward(batch * prompt) + answer * model.forward(batch))


def shared(model: Model, documents: int, prompt: int, answer: int) -> tuple[float, int]:
    """Seconds of all boundaries at once, and the rows in a batch."""
    free = model.gpus * MEMORY - 2 * model.parameters
    rows = RowSize(model.kv_bytes, logits=0).rows_in(free, prompt + answer)
    batches = math.ceil(documents * (model.layers + 1) / rows)
    reading = model.forward(documents * prompt * (model.layers + 3) / 2 / batches, MORE_LAUNCHES)
    return batches * (reading + answer * model.forward(rows, MORE_LAUNCHES)), rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--prompt", type=int, default=200, help="tokens")
    parser.add_argument("--answer", type=int, default=100, help="tokens")
    parser.add_argument("--batch-size", type=int, default=16, help="of the pass one after another")
    args = parser.parse_args()
    rows = []
    for model in MODELS:
        one = plain(model, args.documents, args.prompt, args.answer, args.batch_size)
        all_at_once, batch = shared(model, args.documents, args.prompt, args.answer)
        devices = f"{model.gpus} H100" if model.gpus > 1 else "H100"
        rows.append([model.name, devices, model.layers + 1, batch, f"{one / 60:.0f}", f"{all_at_once / 60:.1f}"])
    head = ["model", "on", "boundaries", "rows", "plain pass, minutes", "shared pass, minutes"]
    print(tabulate(rows, headers=head, tablefmt="github"))


if __name__ == "__main__":
    main()
