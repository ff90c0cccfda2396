"""Scores of an adapter that is merged into the weights, against the same adapter kept beside them.

The same documents, dtype and batches; per strength the share of the LoRA that the weights hold, both scores, and the
paired difference with its 95 % confidence interval. One JSON line per strength.

    python benchmarks/merged.py
    python benchmarks/merged.py --dtype float16 --strengths 1 0.1 --documents 20
    python benchmarks/merged.py --peft ADAPTER --task lora_drop_samsum --data-dir FOLDER
"""

from __future__ import annotations

import common
import numpy as np

from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.harness.task_index import task_manager
from lm_eval_lora_drop.statistics.intervals import mean_interval
from lm_eval_lora_drop.statistics.significance import span
from lm_eval_lora_drop.sweep import documents as validation
from lm_eval_lora_drop.sweep.metric import resolve_metric
from lm_eval_lora_drop.sweep.score import Scorer
from lm_eval_lora_drop.variant import Variant


def main() -> None:
    """Answer both ways, score and print."""
    parser = common.parser(__doc__, documents=100)
    parser.set_defaults(dtype="bfloat16")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--task", default=common.TASK)
    parser.add_argument("--data-dir", help="folder with the task's files (default: from the Hub)")
    args = parser.parse_args()
    lm = common.load(args)
    manager = task_manager([args.task], metadata={"data_dir": args.data_dir} if args.data_dir else None)
    task = manager.load([args.task])["tasks"][args.task]
    task.set_fewshot_seed(1234)
    drawn = validation.draw(common.bind(task), args.documents, seed=0)
    assert drawn is not None
    requests = [request for document in drawn.documents for request in document.requests]
    scorer = Scorer(task, resolve_metric(task, None))
    layers = lm.shape.num_layers
    for strength in args.strengths:
        kept = Variant.parse(f"0-{layers - 1}" + ("" if strength == 1 else f"x{strength:g}"), layers)
        scores = {}
        for way, context in (("separate", lm.layers.keep), ("merged", lm.layers.merge)):
            with context(kept) as survival:
                texts = lm.harness_answers("generate_until", requests, False)
            answers = zip(drawn.documents, texts, strict=True)
            scores[way] = np.array([scorer.item(Answer(kept, one, (text,))) for one, text in answers], float)
            scores[f"texts {way}"] = np.array(texts)
        difference = scores["merged"] - scores["separate"]
        low, high = mean_interval(difference, span=span(np.concatenate([scores["merged"], scores["separate"]])))
        common.emit(
            benchmark="merged",
            task=args.task,
            dtype=args.dtype,
            strength=strength,
            documents=len(difference),
            metric=str(scorer.metric),
            survival=survival.total,
            separate=float(scores["separate"].mean()),
            merged=float(scores["merged"].mean()),
            difference=float(difference.mean()),
            interval=[round(low, 3), round(high, 3)],
            differing_texts=int((scores["texts separate"] != scores["texts merged"]).sum()),
        )


if __name__ == "__main__":
    main()
