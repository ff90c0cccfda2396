"""`lora-drop layers`: published scores of layer importance, side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.commands.probe import add_task_arguments, draw_pairs
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable, write_atomically
from lm_eval_lora_drop.harness.task_index import load_task
from lm_eval_lora_drop.show.tables import table


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peft", metavar="ADAPTER", help="LoRA adapter (default: none; which layers to train)")
    parser.add_argument(
        "--pretrained", metavar="MODEL", help="base model: a folder or a Hub id (default: the adapter's)"
    )
    parser.add_argument("--task", help="an lm-eval task with reference answers")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="output folder for layers.json and figures")
    add_task_arguments(parser)


@command("layers", "importance of each layer, by five published scores", _add_options)
def _layers(args: argparse.Namespace) -> int:
    """Per decoder layer: norm of the update and share of its largest singular value (from the files), the squared
    norm of the LoRA's output on data (LoRA-drop, arXiv 2402.07721), 1 - CKA of the hidden states of base and adapted
    model (Kornblith et al., 2019), and the rise of the reference's probability (logit lens). Without --task only the
    first two, and no model is loaded. Without --peft: 1 - CKA of the pretrained model's hidden states before and behind
    each layer at the last token of the prompt (arXiv 2602.05988), by which lora-drop train --layers cka:0.5 chooses.

    lora-drop layers --peft ./my-adapter
    lora-drop layers --peft ./my-adapter --task gsm8k --limit 50 -o layers
    lora-drop layers --pretrained org/base --task gsm8k
    """
    from lm_eval_lora_drop.adapter.files import open_adapter
    from lm_eval_lora_drop.adapter.names import read_names
    from lm_eval_lora_drop.commands.export import num_layers
    from lm_eval_lora_drop.engine.probe.scores import top_singular, update_norms

    scores: dict[str, Any]
    if args.peft is None and None in (args.pretrained, args.task):
        raise ArgumentError(
            "layers without --peft reads the pretrained model on a task's documents, and needs --pretrained MODEL and "
            "--task TASK. Give both, or --peft ADAPTER."
        )
    files = open_adapter(args.peft) if args.peft is not None else None
    if args.output is not None:
        check_writable(args.output, "--output")
    if files is None:
        scores, documents = _pretrained(args)
    elif args.task is None:
        # The files tell what is asked here: no base model is looked for on the Hub.
        base = args.pretrained or files.config.get("base_model_name_or_path") or ""
        highest = max((tensor.layer or 0) + 1 for tensor in read_names(files.shapes, files.config))
        layers = num_layers(args.peft, base) if args.pretrained or Path(base).is_dir() else highest
        scores = {
            "update_norm": update_norms(files, layers),
            "top_singular": top_singular(files, layers),
        }
        documents = 0
    else:
        scores, documents = _on_task(args, files.base_model(args.pretrained))
    if args.output is not None:
        told = {"task": args.task, "adapter": files and files.fingerprint(), "documents": documents}
        told["scores"] = {name: [float(f"{value:.6g}") for value in values] for name, values in scores.items()}
        write_atomically(args.output / "layers.json", json.dumps(told, indent=1) + "\n")
    print(scores_table(scores))
    if args.output is not None:
        from lm_eval_lora_drop.show.figures.scores import scores_figure
        from lm_eval_lora_drop.show.figures.style import or_warn, save_figure

        title = args.task or Path(args.peft).name
        figures = or_warn(
            lambda: save_figure(scores_figure(title, scores, documents), args.output / "layers"), "the same command"
        )
        print("\n".join(map(str, [args.output / "layers.json", *figures])))
    return 0


add_parser = _layers.add_parser


def _on_task(args: argparse.Namespace, pretrained: str) -> tuple[dict[str, Any], int]:
    # The task before the model, which takes minutes: the name may be misspelt.
    task = load_task(args.task, args.include_path, args.metadata, option="--task")
    lm, _, pairs = draw_pairs(pretrained, task, args)
    return dict(lm.layer_scores(pairs)), len(pairs)


def _pretrained(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from lm_eval_lora_drop.adapter.places import last_states
    from lm_eval_lora_drop.harness.model import encode
    from lm_eval_lora_drop.statistics.alignment import cka_pretrained

    task = load_task(args.task, args.include_path, args.metadata, option="--task")
    lm, _, pairs = draw_pairs(args.pretrained, task, args)
    # The last token of the prompt is the one that predicts the reference.
    texts = [found.inputs for pair in pairs if (found := encode(lm, *pair, 1)) is not None]
    return {"cka_pretrained": cka_pretrained(last_states(lm.model, texts))}, len(texts)


def scores_table(scores: Mapping[str, Sequence[float]]) -> str:
    """A line per layer, the score and its rank among the layers (1 is the largest) for each."""
    columns = {name: list(values) for name, values in scores.items()}
    ranks = {
        name: {layer: rank for rank, layer in enumerate(sorted(range(len(v)), key=lambda one: -v[one]), 1)}
        for name, v in columns.items()
    }
    rows = [
        [str(layer), *(cell for name, v in columns.items() for cell in (f"{v[layer]:.4g}", str(ranks[name][layer])))]
        for layer in range(len(next(iter(columns.values()))))
    ]
    return table(["layer", *(heading for name in columns for heading in (name, "rank"))], rows, left=())
