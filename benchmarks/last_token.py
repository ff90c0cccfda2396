"""A base whose tokenizer ends texts with another token than its generation config says: the choice of K by HFLM, one
request at a time and in a batch, and by the sweep.

Such a base is what chat training on a base model often leaves behind. Here it is the demo's with an end token that it
never says in its configs. HFLM has the adapter edited by hand, B = 0 in the layers that lose it. One JSON line per
side, as it ends: answers that differ from HFLM's at batch size 1, the score of each K, the chosen K. On two cores it
takes more than an hour with all boundaries.

    python benchmarks/last_token.py
    python benchmarks/last_token.py --documents 10 --boundaries 30 28 --peft ../shared/adapters/arith-smollm2-r8
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import common
import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.backend import Work
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.sweep.select import choose, places_of
from lm_eval_lora_drop.variant import Variant

Answers = dict[tuple[Variant, int], Answer]


def main() -> None:
    """Answer, score and print."""
    parser = common.parser(__doc__, documents=20)
    parser.add_argument("--boundaries", type=int, nargs="+", help="default: all")
    args = parser.parse_args()
    task = common.demo_task()
    task.set_config("generation_kwargs", {"until": ["\nQuestion:"], "max_gen_toks": 40}, update=True)
    scorer = Scorer(task, resolve_metric(task, None))
    with tempfile.TemporaryDirectory() as folder:
        args.pretrained = str(with_another_end_token(Path(args.pretrained), Path(folder)))
        lm = common.load(args, boundary="auto", sweep_dir=folder)
        drawn = validation.draw(common.bind(task), args.documents, seed=0)
        assert drawn is not None
        variants = common.every_boundary(lm.shape.num_layers)
        if args.boundaries:
            variants = tuple(one for one in variants if one.boundary in args.boundaries)
        expected: Answers = {}

        def emit(side: str, answers: Answers) -> None:
            rows = [[scorer.item(answers[variant, one.doc_id]) for one in drawn.documents] for variant in variants]
            chosen = choose(
                "smooth", rows, scorer.aggregation, scorer.metric.sign, ordered=True, places=places_of(variants)
            )
            common.emit(
                benchmark="last_token",
                side=side,
                answers=len(answers),
                differing=sum(answers[key].responses != one.responses for key, one in expected.items()),
                scores={one.boundary: round(scorer.aggregate(row), 3) for one, row in zip(variants, rows, strict=True)},
                chosen=variants[chosen.chosen].boundary,
            )

        for size in (1, 16):
            hf = HFLM(args.pretrained, peft=args.peft, dtype=args.dtype, device=args.device, batch_size=size)
            answers = by_key(by_hand(hf, drawn.documents, variants))
            expected = expected or answers
            emit(f"hf at batch size {size}", answers)
        way = lm.prepare(drawn.documents, variants)
        work = [Work(document, variants) for document in drawn.documents]
        emit(f"sweep, {way.engine}", by_key(one for some in way.runner(work) for one in some))


def with_another_end_token(base: Path, folder: Path) -> Path:
    """The base with token 0 as the end of a text in its configs; its tokenizer stays as it is."""
    for file in base.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    for name in ("config.json", "generation_config.json"):
        config = json.loads((base / name).read_text(encoding="utf-8"))
        (folder / name).unlink()
        (folder / name).write_text(json.dumps({**config, "eos_token_id": 0}), encoding="utf-8")
    return folder


def by_hand(hf: HFLM, documents: Sequence[Document], variants: Sequence[Variant]) -> Iterator[Answer]:
    """HFLM's answers, from most layers to fewest: what a layer loses it does not get back."""
    above = {
        parameter: int(found[1])
        for name, parameter in hf.model.named_parameters()
        if "lora_B" in name and (found := re.search(r"layers\.(\d+)\.", name))
    }
    for variant in variants:
        with torch.no_grad():
            for parameter, layer in above.items():
                parameter.mul_(layer < variant.boundary)
        requests = [request for document in documents for request in document.requests]
        for document, text in zip(documents, hf.generate_until(requests, disable_tqdm=True), strict=True):
            yield Answer(variant, document, (text,))


def by_key(answers: Iterator[Answer]) -> Answers:
    """By variant and document."""
    return {(one.variant, one.document.doc_id): one for one in answers}


if __name__ == "__main__":
    main()
