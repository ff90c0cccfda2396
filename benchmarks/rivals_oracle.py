"""Every set of candidates against an adapter edited by hand, and its exports in plain PEFT.

A few candidates of each set, spread from its first to its last, answer documents of the demo's task in the shared and
in the plain pass, and score their references (candidates that answer alike differ there). The oracle is HFLM, one
request at a time, with the adapter's matrices edited as the candidate's notation says; the notation is read and the
ranks are cut (numpy's SVD) a second time here. Each candidate is then exported and loaded by plain PEFT on plain
Transformers, and its logits of prompt and reference are compared with the oracle's. For sets that are searched the
search is run on made-up scores.

One JSON line per model and set: the demo's model and adapter; GPT-2 (weights transposed); Qwen3 with rsLoRA, rank and
alpha patterns; Gemma with DoRA. Exit code 1 if an answer is wrong. On one core it takes a quarter of an hour, almost
all of it for the demo's model.

    python benchmarks/rivals_oracle.py
    python benchmarks/rivals_oracle.py --models gpt2 qwen3 gemma --documents 4 --each 9
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.record.journal import Journal
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Pass, Work
from lm_eval_lora_drop.sweep.candidates import CANDIDATES, SEARCHED, best_layers, make_candidates
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.run import SweepSettings, run_sweep
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.strategies.cma import run_cma
from lm_eval_lora_drop.sweep.strategies.greedy import run_greedy
from lm_eval_lora_drop.variant import AdapterShape, Variant
from testing import doubles, tiny, toy

DEMO = "demo"
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"r": 6},
    "qwen3": {"use_rslora": True, "rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"k_proj": 3}},
    "gemma": {"use_dora": True},
}
"""Architecture -> LoRA on all of its linear layers, besides the usual."""
TOLERANCE = 1e-4
"""What logits may differ by, as a share of the largest, and log-likelihoods as a share of themselves."""
MIXED = ("0-1x1.5r2.{0}+1x0.25.{1}+2", "0.{0}+1-2x0.125r3", "0-2x0.5.attention+1-2r1.mlp+2r2.{1}", "0x2e-2+1x3")
"""Strengths, ranks and kinds of module together; {0} and {1} are the adapter's first and last kind."""
_PIECE = re.compile(r"(\d+)(?:-(\d+))?(?:x(\d+(?:\.\d+)?(?:e-?\d+)?))?(?:r(\d+))?((?:\.[a-z]\w*)*)")


def meaning(notation: str, module: str) -> tuple[float, int | None] | None:
    """Strength and rank that a candidate gives to a module by its full name; None where it drops its LoRA."""
    layer, parts = int(re.findall(r"\.(\d+)\.", module)[0]), module.split(".")
    part, found = "attention" if {"attn", "self_attn"} & set(parts) else "mlp", None
    for first, last, strength, rank, kinds in _PIECE.findall(notation):
        kept = float(strength or 1), int(rank) if rank else None
        if int(first) <= layer <= int(last or first):
            if parts[-1] in kinds.split("."):
                return kept
            found = kept if not kinds or part in kinds.split(".") else found
    return found


class ByHand:
    """HFLM with an adapter whose matrices are edited for one candidate after another."""

    def __init__(self, base: str, adapter: str, dtype: str) -> None:
        self.hf: Any = HFLM(base, peft=adapter, dtype=dtype, device="cpu", batch_size=1)
        self._lora = {name: one for name, one in self.hf.model.named_modules() if isinstance(one, LoraLayer)}
        self._trained = {name: {k: v.clone() for k, v in one.state_dict().items()} for name, one in self._lora.items()}

    @functools.cache  # noqa: B019 - one object a model
    def _svd(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (self._trained[name][f"lora_{role}.default.weight"].double().numpy() for role in "AB")
        left, values, right = np.linalg.svd(b @ a, full_matrices=False)
        return (left * values)[:, : len(a)], right[: len(a)]

    @torch.no_grad()
    def edit(self, notation: str) -> None:
        """Only what `notation` keeps is left."""
        for name, module in self._lora.items():
            kept, trained = meaning(notation, name), self._trained[name]
            a, b = (trained[f"lora_{role}.default.weight"].clone() for role in "AB")
            if kept is not None and kept[1] is not None and kept[1] < len(a):
                up, down = (torch.tensor(part).to(a) for part in self._svd(name))
                a, b = a * 0, b * 0
                a[: kept[1]], b[:, : kept[1]] = down[: kept[1]], up[:, : kept[1]]
            module.lora_A["default"].weight.copy_(a)
            module.lora_B["default"].weight.copy_(b * (kept[0] if kept else 0))
            for magnitude in module.lora_magnitude_vector.values():
                # DoRA without LoRA is the base weight where its lengths are the base weight's.
                lengths = trained["lora_magnitude_vector.default.weight"]
                magnitude.weight.copy_(lengths if kept else module.base_layer.weight.norm(dim=1))


def candidates(name: str, lm: Any, pairs: Sequence[tuple[str, str]]) -> tuple[Variant, ...]:
    """What a set compares besides full adapter and base model, which are among the boundaries."""
    shape: AdapterShape = lm.shape
    if name == "mixed":
        return tuple(Variant.parse(one.format(shape.modules[0], shape.modules[-1]), shape.num_layers) for one in MIXED)
    if name in SEARCHED:
        return tuple(searched(name, shape))
    found = make_candidates([name], shape)
    found = best_layers(lm.layer_scores(pairs), found) if name == "scores" else found
    return tuple(one for one in found.variants if name == "boundary" or not (one.is_full or one.is_base))


def searched(name: str, shape: AdapterShape) -> list[Variant]:
    """What a search asks where scores are made up."""
    task = toy.make_task(
        splits=doubles.questions(validation=8, test=1), process_results=lambda _, said: {"exact_match": float(said[0])}
    )
    scorer, settings = Scorer(task, resolve_metric(task, None)), SweepSettings(make_candidates([name], shape))
    asked: dict[Variant, None] = {}

    def runner(work: Sequence[Work]) -> Iterator[list[Answer]]:
        for variant, document in ((variant, one.document) for one in work for variant in one.variants):
            asked[variant] = None
            yield [Answer(variant, document, (repr(doubles.uniform(str(variant), document.doc_id)),))]

    def sweep_on(some: Sequence[Document], how: SweepSettings) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder), "sha256:0", "toy", settings={})
            return run_sweep(some, lambda: Pass(runner, "rule"), scorer, how, journal, peers=doubles.One())

    search = functools.partial(run_cma, peers=doubles.One(), budget=30) if name == "cma_es" else run_greedy
    search(doubles.make_documents(task), sweep_on, scorer, settings)
    return [one for one in asked if not (one.is_full or one.is_base)]


def same(ours: Any, theirs: Any) -> bool:
    """Texts are equal; log-likelihoods are within the tolerance, and as greedy."""
    if isinstance(theirs, str):
        return bool(ours == theirs)
    return bool(ours[1] == theirs[1] and abs(ours[0] - theirs[0]) <= TOLERANCE * max(1.0, abs(theirs[0])))


@torch.no_grad()
def exported_difference(hand: ByHand, base: str, adapter: str, variant: Variant, texts: Sequence[str]) -> float:
    """Largest relative difference of the logits of the exported candidate in plain PEFT, NaN where one is NaN."""
    with tempfile.TemporaryDirectory() as folder:
        export_adapter(adapter, variant, Path(folder) / "exported")
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=next(hand.hf.model.parameters()).dtype)
        plain = PeftModel.from_pretrained(plain, f"{folder}/exported").eval()
    found = []
    for ids in (torch.tensor([hand.hf.tok_encode(text)]) for text in texts):
        one, other = plain(input_ids=ids).logits, hand.hf.model(input_ids=ids).logits
        found.append(float((one - other).abs().max() / other.abs().max()))
    return float(np.max(found))


def run(label: str, base: str, adapter: str, args: argparse.Namespace) -> int:
    """All sets on one model; returns the number of wrong answers and exports."""
    args.pretrained, args.peft = base, adapter
    lm, hand = common.load(args), ByHand(base, adapter, args.dtype)
    binding, failed = common.bind(common.demo_task(24)), 0
    drawn = validation.draw(binding, args.documents, seed=0)
    assert drawn is not None
    pairs = validation.pairs(binding, drawn.documents)
    choices = [
        replace(document, requests=(Instance("loglikelihood", document.doc, pair, 0),))
        for document, pair in zip(drawn.documents, pairs, strict=True)
    ]
    asked = {"generate_until": drawn.documents, "loglikelihood": choices}
    for name in args.sets:
        every, counters = candidates(name, lm, pairs), Counters()
        places = np.linspace(0, len(every) - 1, args.each).round().astype(int).tolist()
        some = [every[place] for place in dict.fromkeys(places)]
        answers, wrong, different, exports = 0, 0, set(), {}
        for kind in args.requests:
            documents = asked[kind]
            requests = [document.requests[0] for document in documents]
            work = [Work(document, tuple(some)) for document in documents]
            passes = [shared_runner(lm, lm.layers, counters=counters), plain_runner(lm, lm.layers)]
            found = [{(a.variant, a.document.doc_id): a.responses[0] for b in one(work) for a in b} for one in passes]
            for variant in some:
                hand.edit(str(variant))
                theirs = getattr(hand.hf, kind)(requests, disable_tqdm=True)
                different |= {one if isinstance(one, str) else round(one[0], 3) for one in theirs}
                ours = [[one[variant, document.doc_id] for document in documents] for one in found]
                answers += sum(map(len, ours))
                wrong += sum(not same(*both) for one in ours for both in zip(one, theirs, strict=True))
                if not variant.is_base and variant not in exports:
                    texts = [prompt + answer for prompt, answer in pairs]
                    exports[variant] = exported_difference(hand, base, adapter, variant, texts)
        largest = float(np.max(list(exports.values())))
        failed += wrong + (not largest < TOLERANCE) + (counters.fell_back is not None)
        common.emit(
            benchmark="rivals_oracle",
            model=label,
            set=name,
            candidates=len(some),
            answers=answers,
            wrong=wrong,
            different=len(different),
            exports=len(exports),
            relative_logit_difference=f"{largest:.1e}",
            fell_back=counters.fell_back,
        )
    return failed


def main() -> None:
    """Compare and print."""
    parser = common.parser(__doc__, documents=2)
    parser.set_defaults(threads=1)
    parser.add_argument("--models", nargs="+", choices=[DEMO, *TINY], default=[DEMO, *TINY])
    every = [name for name in CANDIDATES if name != "adapters"]
    parser.add_argument("--sets", nargs="+", choices=[*every, "mixed"], default=[*every, "mixed"])
    kinds = ("generate_until", "loglikelihood")
    parser.add_argument("--requests", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--each", type=int, default=4, help="candidates of a set")
    args = parser.parse_args()
    disable_progress_bar()
    demo, failed = (args.pretrained, args.peft), 0
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            base, adapter = demo
            if name != DEMO:
                base = str(tiny.make_base(Path(folder) / name, name))
                adapter = str(tiny.make_adapter(Path(base), Path(folder) / f"{name}-lora", **TINY[name]))
            failed += run(name, base, adapter, args)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
