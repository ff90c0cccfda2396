"""How many rows fit: the estimate against an allocator that counts what tensors hold."""

import pytest
import torch

from lm_eval_lora_drop.engine.memory import ROWS, SHARE, RowSize, rows_that_fit
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.sweep.backend import Work
from testing.counted_memory import CountedMemory
from testing.tiny import make_adapter, make_base
from tests.engine.test_shared import answers, below, choosing, generating, load

LAYERS = 12  # the models that users have are deep: keys and values outweigh what one layer makes in passing
NEW = 5
BEFORE = "The answer is in the text of the other one. " * 4


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """Tiny models of twelve layers and their adapters; Gemma-2's attention is not fused and makes its weights."""
    found = {}
    for name in ("llama", "gemma2"):
        folder = tmp_path_factory.mktemp(name)
        base = make_base(folder / "base", name, num_layers=LAYERS)
        found[name] = base, make_adapter(base, folder / "adapter")
    return found


def writing(before):
    return generating(before, max_gen_toks=NEW)


def estimated(lm, docs, rows):
    """Bytes that `rows` rows are taken to need."""
    tokens = max(len(lm.tok_encode(request.args[0])) for one in docs for request in one.requests) + NEW
    return RowSize.of(lm).bytes_of(rows, tokens)


def counted(lm, docs, variants, rows):
    """Bytes that tensors hold at most while `rows` rows at a time are answered."""
    memory = CountedMemory()
    with memory:
        found = answers(shared_runner(lm, lm.layers, rows), [Work(one, variants) for one in docs])
    assert len(found) == len(docs) * len(variants)
    return memory.peak


@pytest.mark.parametrize(
    ("name", "make", "dtype"),
    [
        ("llama", choosing, torch.float32),
        ("llama", writing, torch.bfloat16),
        ("gemma2", writing, torch.float32),
        ("gemma2", choosing, torch.bfloat16),
    ],
)
def test_what_is_held_stays_within_the_memory_the_estimate_asks_for(deep, name, make, dtype):
    """Keys, values and logits are estimated as if no row shared any; intermediate results have the other share."""
    lm = load(*deep[name], dtype=dtype)
    docs = make(BEFORE)[:2]
    for variants in (below(12, num_layers=LAYERS), below(*range(13), num_layers=LAYERS)):
        rows = len(docs) * len(variants)
        asked = estimated(lm, docs, rows) / SHARE
        held = counted(lm, docs, variants, rows)
        assert 0.1 * asked < held <= asked, (held, asked)


def test_fewer_rows_at_a_time_hold_less(deep):
    lm = load(*deep["llama"])
    docs, variants = writing(BEFORE)[:3], below(*range(0, 13, 4), num_layers=LAYERS)
    held = [counted(lm, docs, variants, rows) for rows in (12, 4)]
    assert held[0] > held[1]


def test_the_rows_that_fit_are_those_of_the_share_of_free_memory(deep, monkeypatch):
    lm = load(*deep["llama"])
    size = RowSize.of(lm)
    monkeypatch.setattr("lm_eval_lora_drop.engine.memory.free_memory", lambda device: 20_000_000)
    rows = rows_that_fit(lm, size, 100)
    assert size.bytes_of(rows, 100) <= SHARE * 20_000_000 < size.bytes_of(rows + 1, 100)
    assert rows_that_fit(lm, size, 10_000_000) == 1
    monkeypatch.setattr("lm_eval_lora_drop.engine.memory.free_memory", lambda device: 10**12)
    assert rows_that_fit(lm, size, 100) == ROWS


def test_the_count_is_that_of_storages_and_not_of_views():
    counted_memory = CountedMemory()
    given = torch.ones(1000)
    with counted_memory:
        one = given * 2
        one.view(10, 100).t()
        given[:10].add_(1)
        assert counted_memory.peak == 4000
        del one
        torch.zeros(500)
        assert counted_memory.peak == 4000
        torch.zeros(2000)
    assert counted_memory.peak == 8000
