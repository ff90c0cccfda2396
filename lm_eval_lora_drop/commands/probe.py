"""`lora-drop probe`: curves over the layers on a task's validation documents, as a table, a file and figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import command, json_object, natural, positive
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable, write_atomically
from lm_eval_lora_drop.harness.task_index import load_task
from lm_eval_lora_drop.variant import Variant, parse_boundary, parse_layers

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from lm_eval_lora_drop.sweep.documents.drawing import ValidationSet


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pretrained", required=True, metavar="MODEL", help="base model: a folder or a Hub id")
    parser.add_argument("--peft", required=True, metavar="ADAPTER", help="LoRA adapter: a folder or a Hub id")
    parser.add_argument("--task", required=True, help="an lm-eval task with reference answers")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument(
        "--boundary", action="append", default=[], metavar="K", help="also read this boundary (may be repeated)"
    )
    parser.add_argument(
        "--layers", action="append", default=[], metavar="SET", help="also read this variant, e.g. 0-14+20"
    )
    parser.add_argument("--tokens", type=positive, default=4, help="number of reference tokens to read (default 4)")
    add_task_arguments(parser)
    parser.add_argument("--formats", default="png,svg,pdf", help="formats of the figures (default png,svg,pdf)")


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """How documents are drawn and shown, and where the model runs."""
    parser.add_argument("--limit", type=positive, default=100, help="number of validation documents (default 100)")
    parser.add_argument("--seed", type=natural, default=0, help="seed of drawing and bootstrap (default 0)")
    parser.add_argument("--num-fewshot", "--num_fewshot", type=natural, help="few-shot examples (default: the task's)")
    parser.add_argument("--apply-chat-template", "--apply_chat_template", action="store_true", help="as in lm_eval")
    parser.add_argument("--include-path", "--include_path", help="folder with further tasks, as in lm_eval")
    parser.add_argument("--metadata", type=json_object, default={}, help="JSON handed to the task, as in lm_eval")
    parser.add_argument("--device", default="cuda:0", help="as in lm_eval (default: cuda:0, else cpu)")
    parser.add_argument("--dtype", default="auto", help="dtype of the base model (default: as saved)")


@command("probe", "show the probability of the reference answer after every decoder layer", _add_options)
def _probe(args: argparse.Namespace) -> int:
    """Reads the probability of the first reference tokens at every decoder layer (logit lens) on a task's validation
    documents: for the full adapter, the base model, and the boundaries given (default: the one after the rise point).
    Writes probe.json, probe.txt and figures.

    lora-drop probe --pretrained org/base --peft ./my-adapter --task gsm8k -o probe
    lora-drop probe --pretrained org/base --peft ./my-adapter --task gsm8k -o probe --boundary 20 --limit 50
    lora-drop probe --pretrained org/base --peft ./my-adapter --task gsm8k -o probe --tokens 8 --formats pdf
    """
    specs = [*map(parse_boundary, args.boundary), *map(parse_layers, args.layers)]
    for spec in specs:
        if spec.needs_validation:
            raise ArgumentError(
                f"--boundary must be a number, full, base or default, got {spec}. Leave it out for the probe's; for "
                "that of a sweep, run lm_eval with boundary=auto and give its K."
            )
    from lm_eval_lora_drop.show.figures.style import check_formats, or_warn

    formats = check_formats(args.formats.split(","))
    check_writable(args.output, "--output")
    # The task before the model, which takes minutes: the name may be misspelt.
    task = load_task(args.task, args.include_path, args.metadata, option="--task")

    import msgspec

    from lm_eval_lora_drop.engine.probe.run import probe, probe_boundary
    from lm_eval_lora_drop.show.figures.probe import save_probe_figures

    lm, drawn, pairs = draw_pairs(args.pretrained, task, args)
    num_layers = lm.layers.num_layers
    sets = [kept for spec in specs if (kept := spec.resolve(num_layers)) is not None]
    if not sets:
        found = probe_boundary(lm, lm.layers, pairs, tokens=args.tokens, seed=args.seed)
        sets = [Variant.below(found.boundary, num_layers)]
    sets.append(Variant.base(num_layers))
    result = probe(lm, lm.layers, pairs, sets, tokens=args.tokens, seed=args.seed)
    record = {
        "task": args.task,
        **{key: lm.fingerprint_parts()[key] for key in ("adapter", "base", "dtype")},
        "split": drawn.split,
        "doc_ids": [document.doc_id for document in drawn.documents],
        "left_out": msgspec.to_builtins(drawn.left_out),
        "probe": result.to_json(),
    }
    write_atomically(args.output / "probe.json", json.dumps(record, indent=1) + "\n")
    write_atomically(args.output / "probe.txt", result.table() + "\n")
    figures = or_warn(lambda: save_probe_figures(args.task, record["probe"], args.output, formats))
    print(result.table())
    print("\n".join(map(str, [args.output / "probe.json", args.output / "probe.txt", *figures])))
    return 0


add_parser = _probe.add_parser


def draw_pairs(
    pretrained: str, task: Task, args: argparse.Namespace
) -> tuple[Any, ValidationSet, list[tuple[str, str]]]:
    """The model (lm-eval's own without an adapter), validation documents of the task asked as the options say, and
    their (prompt, reference) pairs.

    Raises:
        ArgumentError: the task has no such documents, or the model cannot be loaded as asked.
        AdapterError: no LoRA adapter, or one that does not fit the base model.
    """
    from lm_eval_lora_drop.backends.hf import LoraDropLM, without_adapter
    from lm_eval_lora_drop.harness.documents import Binding
    from lm_eval_lora_drop.sweep import documents as validation

    how: dict[str, Any] = {"device": args.device, "dtype": args.dtype, "batch_size": 1}
    lm = LoraDropLM(pretrained, args.peft, boundary="full", **how) if args.peft else without_adapter(pretrained, **how)
    if args.num_fewshot is not None:
        task.set_config(key="num_fewshot", value=args.num_fewshot)
    chat = args.apply_chat_template
    binding = Binding(
        task,
        {
            "system_instruction": None,
            "apply_chat_template": chat,
            "fewshot_as_multiturn": chat,
            "chat_template": lm.apply_chat_template if chat else None,
        },
    )
    drawn = validation.draw(binding, args.limit, args.seed)
    if drawn is None:
        raise ArgumentError(
            f"task {args.task} has no validation or training documents besides the evaluated ones, so there is nothing "
            "to probe. Choose one that has."
        )
    return lm, drawn, validation.pairs(binding, drawn.documents)
