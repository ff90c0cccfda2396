"""What the kinds of requests share during a sweep: the model, its wrappers, the budget and the counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.endings import is_out_of_memory
from lm_eval_lora_drop.engine.kernels import fast_products
from lm_eval_lora_drop.engine.memory import RowSize, halve
from lm_eval_lora_drop.engine.states.branching import Branches
from lm_eval_lora_drop.harness.model import HarnessModel


@dataclass
class Counters:
    """What a sweep cost, for benchmarks and the log.

    `rows` counts answers (one per document and variant), `most_rows` those in the largest batch, `halved` how often
    memory ran out. `layer_rows` is the number of layer passes, one for each state in each forward; `layer_tokens`
    counts each token position of them. `compared` is, by what ended an answer, how many tokens the longest had that was
    compared to its end (None: none shall be). `fell_back` says why the plain pass took over, if it did.
    """

    rows: int = 0
    most_rows: int = 0
    layer_rows: int = 0
    layer_tokens: int = 0
    halved: int = 0
    compared: dict[str, int] | None = field(default_factory=dict)
    fell_back: str | None = None


@dataclass
class Session:
    """The shared pass of one runner. `batch_size` is the number of rows at a time, None for what fits.

    Making one sends two small batches through the model; what that raises, it raises.
    """

    lm: HarnessModel
    layers: AdapterLayers
    batch_size: int | None
    counters: Counters
    branches: Branches = field(init=False)
    row_size: RowSize = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.branches = Branches(self.lm, self.layers)
            self.row_size = RowSize.of(self.lm)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # A few rows of a few tokens: no batch can be smaller.
            halve(1)

    def attempt(self, action: Callable[[], None]) -> bool:
        """Do this with the wrappers on; False when memory ran out. Nothing of a failed attempt is kept alive."""
        try:
            with fast_products(self.lm), self.branches.wrap():
                action()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.counters.halved += 1
            return False
        finally:
            self.counters.layer_rows = self.branches.layer_rows
            self.counters.layer_tokens = self.branches.layer_tokens
        return True
