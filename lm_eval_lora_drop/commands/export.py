"""`lora-drop export`: an adapter with what is kept only, or the merged model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.variant import Variant, default_boundary, parse_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping


def add_parser(subparsers: Any) -> None:
    """Add `export` to `lora-drop`."""
    parser = subparsers.add_parser(
        "export",
        help="write an adapter with what is kept of it only",
        description="Writes one plain PEFT adapter with what is kept only (layers, strengths, modules, cut ranks), or "
        "the merged model.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    add_choice(parser)
    parser.add_argument("--merge", action="store_true", help="write the base model with the kept LoRA folded in")
    parser.add_argument("--dtype", default="auto", help="with --merge: e.g. bfloat16 (default: as saved)")
    parser.set_defaults(func=_export)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The options that name an adapter and what is kept of it, for `choice`."""
    parser.add_argument("--peft", metavar="ADAPTER", help="the whole adapter: a folder or a Hub id")
    parser.add_argument(
        "--boundary", metavar="K", help="keep the LoRA of the bottom K decoder layers (or: default, full)"
    )
    parser.add_argument("--layers", metavar="SET", help="keep the LoRA of these layers, e.g. 0-14+20 or 0-29x0.5")
    parser.add_argument(
        "--results", type=Path, metavar="PATH", help="take adapter and choice from a run: file or folder"
    )
    parser.add_argument("--task", help="with --results: the task whose choice is taken")
    parser.add_argument("--pretrained", metavar="MODEL", help="the base model, if not the one the adapter names")


def choice(args: argparse.Namespace, command: str) -> tuple[str, Variant, str]:
    """The adapter, what is kept of it, and a sentence on where that came from.

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
        entry, recorded, file = _recorded(args.results, args.task)
        source = _same_adapter(args.peft or recorded.get("path"), recorded)
        return source, _kept_in(entry, file), _origin(entry, file)
    if args.peft is None:
        raise ArgumentError("--peft must name the whole adapter, got none. Give its folder or Hub id.")
    if args.layers is not None:
        parse_ranges(args.layers.rpartition("@")[2])  # before a model is looked up
        kept = Variant.parse(args.layers, num_layers(args.peft, args.pretrained))
        return args.peft, kept, f"given by hand (layers={args.layers})."
    asked = args.boundary.strip()
    if asked in ("auto", "probe"):
        raise ArgumentError(
            f"--boundary {asked} needs a sweep. Run lm_eval with boundary={asked} and {command} with --results "
            "<its results file> --task <task>."
        )
    if asked not in ("default", "full") and not (asked.isascii() and asked.isdecimal() and len(asked) < 7):
        raise ArgumentError(f"--boundary must be a number of layers, default or full, got {asked[:80]!r}.")
    layers = num_layers(args.peft, args.pretrained)
    if asked == "default":
        how = f"the paper's default, 15 of 32 layers scaled to {layers}."
        return args.peft, Variant.below(default_boundary(layers), layers), how
    return args.peft, Variant.below(layers if asked == "full" else int(asked), layers), "given by hand."


def num_layers(source: str, pretrained: str | None) -> int:
    """The decoder layers of the adapter's base model, from configurations; no weights are read.

    Raises:
        ArgumentError: no base model is named, or its configuration cannot be read.
        AdapterError: the adapter cannot be read.
    """
    from transformers import AutoConfig

    from lm_eval_lora_drop.adapter.files import open_adapter

    config = open_adapter(source).config
    base = pretrained or config.get("base_model_name_or_path")
    if not base:
        raise ArgumentError(f"{source} does not name its base model. Give it with --pretrained.")
    try:
        layers = int(AutoConfig.from_pretrained(base).get_text_config().num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"the configuration of {base}, which tells the number of decoder layers, cannot be read: give the base "
            "model with --pretrained (a folder or a Hub id)."
        ) from error
    # PEFT builds the model anew from ranges [first, end) of its layers.
    ranges = config.get("layer_replication") or []
    return sum(end - first for first, end in ranges) if ranges else layers


def _export(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.adapter.export import export_adapter
    from lm_eval_lora_drop.adapter.files import check_new
    from lm_eval_lora_drop.adapter.merge import check_dtype, merge_adapter

    check_new(args.output)
    check_dtype(args.dtype)
    source, kept, origin = choice(args, "export")
    if args.merge:
        exported = merge_adapter(source, kept, args.output, pretrained=args.pretrained, dtype=args.dtype, origin=origin)
        print(f"merged model written to {args.output}")
    else:
        exported = export_adapter(source, kept, args.output, origin=origin)
    print(exported.summary())
    return 0


def _recorded(path: Path, task: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any], Path]:
    """A task's entry in a results file or in the one such file of a folder, its entry on the adapter, the file."""
    from lm_eval_lora_drop.record.find import find_runs

    runs, issues = find_runs([path])
    records = [(run.path, found) for run in runs if (found := (run.data.get("config") or {}).get("lora_drop"))]
    if not records:
        why = f" {issues[0].path.name} {issues[0].message}" if issues else ""
        raise ArgumentError(f"{path} holds no run of hf-lora-drop: no results file has config.lora_drop.{why}")
    having = [(file, record) for file, record in records if task is None or task in record["tasks"]]
    if len(having) > 1:
        names = ", ".join(file.name for file, _ in having[:5]) + (", ..." if len(having) > 5 else "")
        with_task = f" with task {task}" if task else ""
        raise ArgumentError(
            f"{path} holds {len(having)} runs{with_task}: {names}. Give the results file of one of them."
        )
    file, record = having[0] if having else records[0]
    tasks = record["tasks"]
    if task is None and len(tasks) == 1:
        task = next(iter(tasks))
    if task not in tasks:
        raise ArgumentError(f"{path} holds the tasks {', '.join(tasks)}; --task must be one of them, got {task}.")
    return tasks[task] | {"task": task}, record["adapter"], file


def _same_adapter(source: str | None, recorded: Mapping[str, Any]) -> str:
    from lm_eval_lora_drop.adapter.files import open_adapter

    if source is None:
        raise ArgumentError("the results file does not name the adapter's folder. Give it with --peft.")
    found = open_adapter(source).fingerprint()
    if found != recorded.get("fingerprint"):
        raise ArgumentError(
            f"{source} is not the adapter of this run: its fingerprint is {found}, the run's was "
            f"{recorded.get('fingerprint')}. Give the right one with --peft."
        )
    return source


def _kept_in(entry: Mapping[str, Any], file: Path) -> Variant:
    try:
        return Variant.parse(entry["layers"], int(entry["num_layers"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{file}: the entry of task {entry['task']} does not say what was kept ({error})."
        ) from error


def _origin(entry: Mapping[str, Any], path: Path) -> str:
    run = f"run `{path.name}`, task `{entry['task']}`"
    if entry["method"] != "sweep":
        how = {"given": "given by hand", "default": "the paper's default", "probe": "the probe's rise point"}
        return f"{how.get(entry['method'], entry['method'])} ({run})."
    sweep = entry["sweep"]
    scores = {row["boundary"]: row for row in sweep["boundaries"]}
    chosen = scores[sweep["chosen"]]
    stderr = "" if chosen["stderr"] is None else f" ± {chosen['stderr']:.3g}"
    full = "" if sweep.get("full_score") is None else f"; the whole adapter scored {sweep['full_score']:.4g}"
    return (
        f"a sweep over {len(scores)} boundaries on {chosen['documents']} documents of split `{entry['split']}` by "
        f"{entry['metric']}: {chosen['score']:.4g}{stderr}{full} ({run})."
    )
