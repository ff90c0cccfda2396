"""The decoder by itself, against greedy decoding by hand: one forward over all tokens so far for each new one."""

import contextlib

import pytest
import torch

from lm_eval_lora_drop.engine.decode import Decoder, Job
from lm_eval_lora_drop.engine.requests import Rules, encode_prompt
from lm_eval_lora_drop.engine.states.branching import Branches
from lm_eval_lora_drop.variant import Variant
from tests.engine.test_shared import EXAMPLES, PROMPTS, load

LAYERS = 4
FULL = Variant.full(LAYERS)
VARIANTS = tuple(Variant.parse(text, LAYERS) for text in ("0-3", "0-1", "none", "1-3x0.5.mlp", "0"))


@pytest.fixture(scope="module")
def llama(tiny_base, tiny_adapter):
    return load(tiny_base, tiny_adapter)


def rules(lm, **kwargs):
    return Rules.of(lm, {"until": ["q", "\n\n"], "max_gen_toks": 14, **kwargs})


def by_hand(lm, prompt, rules, variant):
    """What the harness would say: decode to the end, stop at the end token, cut at the first stop sequence."""
    said, tokens = [], list(encode_prompt(lm, prompt, rules))
    with torch.inference_mode(), lm.layers.keep(variant):
        while len(said) < rules.max_new_tokens and not (said and said[-1] in rules.end_tokens):
            said.append(int(lm.model(input_ids=torch.tensor([tokens + said])).logits[0, -1].argmax()))
    text = lm.tok_decode(said)
    for stop in rules.stops:
        text = text.split(stop)[0] if stop else text
    return text


def run(lm, prompts, jobs, rules, capacity, branches=None, enough=10_000):
    decoder = Decoder(lm, prompts, jobs, rules, branches, capacity)
    with branches.wrap() if branches else contextlib.nullcontext():
        decoder.run(enough)
    return decoder


def once(finished):
    found = {(said.prompt, str(said.variant)): said.text for said in finished}
    assert len(found) == len(finished)
    return found


@pytest.mark.parametrize(
    ("capacity", "until"), [(1, ["q", "\n\n"]), (2, []), (3, ["e t", "</s>"]), (16, ["q", "\n\n"])], ids=str
)
def test_without_branches_it_decodes_greedily_whatever_the_number_of_rows(llama, capacity, until):
    settled = rules(llama, until=until)
    decoder = run(llama, PROMPTS, [Job(place, (FULL,)) for place in range(len(PROMPTS))], settled, capacity)
    expected = {(i, str(FULL)): by_hand(llama, prompt, settled, FULL) for i, prompt in enumerate(PROMPTS)}
    assert once(decoder.take()) == expected
    assert not decoder.busy
    assert decoder.take() == decoder.unfinished() == []
    assert 1 <= decoder.most_rows <= capacity


@pytest.mark.parametrize(("capacity", "before"), [(2, ""), (7, EXAMPLES), (64, "")])
def test_with_branches_every_variant_says_its_own(llama, capacity, before):
    """With fewer rows than variants a document is answered in pieces."""
    prompts, settled = [before + prompt for prompt in PROMPTS[:3]], rules(llama)
    jobs = [Job(0, VARIANTS), Job(1, VARIANTS[1:4]), Job(2, VARIANTS[::2])]
    decoder = run(llama, prompts, jobs, settled, capacity, Branches(llama, llama.layers))
    expected = {
        (job.prompt, str(v)): by_hand(llama, prompts[job.prompt], settled, v) for job in jobs for v in job.variants
    }
    assert once(decoder.take()) == expected
    assert len(set(expected.values())) > 5


def test_what_is_unfinished_can_be_handed_to_another_decoder(llama):
    """As after running out of memory: nothing is answered twice, nothing is lost."""
    settled = rules(llama, until=["t"])
    jobs = [Job(place, VARIANTS) for place in range(len(PROMPTS))]
    branches = Branches(llama, llama.layers)
    found, rounds = [], 0
    while jobs:
        decoder = run(llama, PROMPTS, jobs, settled, 8, branches, enough=4)
        taken = decoder.take()
        assert len(taken) >= min(4, sum(len(job.variants) for job in jobs))
        found += taken
        jobs = decoder.unfinished()
        rounds += 1
    assert rounds > 1
    expected = {(i, str(v)): by_hand(llama, prompt, settled, v) for i, prompt in enumerate(PROMPTS) for v in VARIANTS}
    assert once(found) == expected


def test_no_job_is_nothing_to_do(llama):
    decoder = Decoder(llama, [PROMPTS[0]], [Job(0, (FULL,))], rules(llama, max_gen_toks=1), None, 4)
    assert decoder.busy
    decoder.run(1)
    assert not decoder.busy
    (said,) = decoder.take()
    assert (said.prompt, said.variant, len(said.tokens), said.ended_by) == (0, FULL, 1, "token limit")
