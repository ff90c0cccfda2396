"""`lora-drop export`: an adapter with what is kept only, or the merged model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import adapter_sources, source_of
from lm_eval_lora_drop.variant import Variant, parse_boundary, parse_layers

if TYPE_CHECKING:
    from lm_eval_lora_drop.record.runs import Run
    from lm_eval_lora_drop.record.schema import TaskRecord


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="output folder; must not exist"
    )
    add_choice(parser)
    parser.add_argument("--merge", action="store_true", help="write the base model with the kept LoRA folded in")
    parser.add_argument("--dtype", default="auto", help="with --merge: e.g. bfloat16 (default: as saved)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --merge: also if rounding leaves less than half of the LoRA",
    )


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that name an adapter and what is kept of it, for `choice`."""
    parser.add_argument("--peft", metavar="ADAPTER", help="full adapter: a folder or a Hub id; join several with +")
    parser.add_argument(
        "--boundary", metavar="K", help="keep the LoRA of the bottom K decoder layers; or default, full"
    )
    parser.add_argument("--layers", metavar="SET", help="keep this variant, e.g. 0-14+20 or 0-29x0.5")
    parser.add_argument(
        "--results", type=Path, metavar="PATH", help="take adapter and choice from a run (results file or folder)"
    )
    parser.add_argument("--task", help="with --results: task whose choice is taken")
    parser.add_argument("--pretrained", metavar="MODEL", help="base model (default: the one that the adapter names)")


@dataclass(frozen=True)
class ExportSource:
    """An adapter, what is kept of it, a sentence on where that came from, and the run and task it came from."""

    source: str
    kept: Variant
    origin: str
    run: Run | None = None
    task: str | None = None


def choice(args: argparse.Namespace, command: str) -> ExportSource:
    """What the options of `add_choice` say.

    Raises:
        ArgumentError: not exactly one choice, a malformed one, or a run that does not have it.
        AdapterError: the adapter cannot be read.
    """
    given = [name for name in ("boundary", "layers", "results") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ArgumentError(
            f"{command} needs exactly one of --boundary, --layers and --results, got {', '.join(given) or 'none'}."
        )
    if args.results is not None:
        from lm_eval_lora_drop.adapter.export import adapter_of_choice
        from lm_eval_lora_drop.show.model_card import origin_of

        run, task, record = _recorded(args.results, args.task)
        assert run.record is not None
        where, part = adapter_of_choice(run.record.adapter, record.kept, args.peft, "--peft FOLDER")
        return ExportSource(where, part, origin_of(task, record, run.path), run, task)
    if args.peft is None:
        raise ArgumentError("--peft must name the full adapter, got none. Give its folder or Hub id.")
    spec = parse_layers(args.layers) if args.layers is not None else parse_boundary(args.boundary)
    if spec.needs_validation:
        raise ArgumentError(
            f"--{spec} needs a sweep. Run lm_eval with {spec} and {command} with --results <its results file> "
            "--task <task>."
        )
    sources = adapter_sources(args.peft)
    layers = num_layers(next(iter(sources.values())), args.pretrained)
    kept = spec.resolve(layers)
    assert kept is not None
    # Of several adapters the one that the layers name; alone it needs no name.
    source = source_of(args.peft, kept.adapter)
    how = f"the paper's default, 15 of 32 layers scaled to {layers}" if spec.kind == "default" else "given by hand"
    return ExportSource(source, replace(kept, adapter=""), f"{how} ({spec}).")


def num_layers(source: str, pretrained: str | None) -> int:
    """The decoder layers of the adapter's base model, from configurations; no weights are read.

    Raises:
        ArgumentError: the base model's configuration cannot be read.
        AdapterError: the adapter cannot be read, or no base model is named.
    """
    from transformers import AutoConfig

    from lm_eval_lora_drop.adapter.files import open_adapter

    files = open_adapter(source)
    base = files.base_model(pretrained)
    try:
        layers = int(AutoConfig.from_pretrained(base).get_text_config().num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"the configuration of {base}, which tells the number of decoder layers, cannot be read: give the base "
            "model with --pretrained (a folder or a Hub id)."
        ) from error
    # PEFT builds the model anew from ranges [first, end) of its layers.
    ranges = files.config.get("layer_replication") or []
    return sum(end - first for first, end in ranges) if ranges else layers


@command("export", "write a smaller adapter, or the merged model", _add_options)
def _export(args: argparse.Namespace) -> int:
    """Writes one plain PEFT adapter of the kept part (layers, strengths, modules, ranks), or the merged model.

    lora-drop export --results out -o smaller
    lora-drop export --peft ./my-adapter --boundary 20 -o my-adapter-K20
    lora-drop export --results out --task gsm8k --merge --dtype bfloat16 -o merged
    """
    from lm_eval_lora_drop.adapter.export import export_adapter
    from lm_eval_lora_drop.adapter.files import check_new
    from lm_eval_lora_drop.adapter.merge import check_dtype, merge_adapter

    check_new(args.output)
    check_dtype(args.dtype)
    made = choice(args, "export")
    evaluated = None
    # Another base model has other scores than the one that was evaluated.
    if made.run is not None and made.task is not None and not (args.merge and args.pretrained):
        from lm_eval_lora_drop.show.model_card import card_results

        evaluated = card_results(made.run, made.task)
    said: dict[str, Any] = {"origin": made.origin, "evaluated": evaluated}
    if args.merge:
        from lm_eval_lora_drop.show.figures.survival import save_survival_figure

        said |= {"pretrained": args.pretrained, "dtype": args.dtype, "force": args.force}
        exported = merge_adapter(made.source, made.kept, args.output, draw=save_survival_figure, **said)
        print(f"merged model written to {args.output}")
    else:
        exported = export_adapter(made.source, made.kept, args.output, **said)
    print(exported.summary())
    return 0


add_parser = _export.add_parser


def _recorded(path: Path, task: str | None) -> tuple[Run, str, TaskRecord]:
    """A run of hf-lora-drop, in a results file or the only one with that task in a folder; the task and its record."""
    from lm_eval_lora_drop.record.find import only_run

    run = only_run(path, task)
    records = run.record.tasks if run.record else {}
    if task is None and len(records) == 1:
        task = next(iter(records))
    if task is None or task not in records:
        raise ArgumentError(f"{run.path} holds the tasks {', '.join(records)}; --task must be one of them, got {task}.")
    return run, task, records[task]
