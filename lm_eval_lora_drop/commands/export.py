"""`lora-drop export`: an adapter with the kept layers only, or the merged model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.boundary import LayerSet, parse_boundary, parse_layers
from lm_eval_lora_drop.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping


def add_parser(subparsers: Any) -> None:
    """Add `export` to `lora-drop`."""
    parser = subparsers.add_parser(
        "export",
        help="write an adapter with the LoRA of the kept layers only",
        description="Writes a standard PEFT adapter with the LoRA of the kept layers only, or the merged model.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument("--peft", metavar="ADAPTER", help="the whole adapter: a folder or a Hub id")
    parser.add_argument("--boundary", metavar="K", help="keep the LoRA of the bottom K decoder layers (or: default)")
    parser.add_argument("--layers", metavar="SET", help="keep the LoRA of these layers, e.g. 0-14+20")
    parser.add_argument("--results", type=Path, metavar="FILE", help="take adapter and layers from this results file")
    parser.add_argument("--task", help="with --results: the task whose boundary is taken")
    parser.add_argument("--merge", action="store_true", help="write the base model with the kept LoRA folded in")
    parser.add_argument("--pretrained", metavar="MODEL", help="the base model, if not the one the adapter names")
    parser.add_argument("--dtype", default="auto", help="with --merge: e.g. bfloat16 (default: as saved)")
    parser.set_defaults(func=_export)


def _export(args: argparse.Namespace) -> int:
    from lm_eval_lora_drop.adapter.export import export_adapter, merge_adapter

    given = [name for name in ("boundary", "layers", "results") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ArgumentError(
            f"export needs exactly one of --boundary, --layers and --results, got {', '.join(given) or 'none'}."
        )
    source = args.peft
    if args.results is not None:
        entry, recorded = _recorded(args.results, args.task)
        source = _same_adapter(source or recorded.get("path"), recorded)
        kept, origin = _kept_in(entry), _origin(entry, args.results)
    else:
        if source is None:
            raise ArgumentError("--peft must name the whole adapter, got none. Give its folder or Hub id.")
        spec = parse_layers(args.layers) if args.layers is not None else parse_boundary(args.boundary)
        if spec.needs_validation:
            raise ArgumentError(
                f"--boundary {args.boundary} needs a sweep. Run lm_eval with boundary={args.boundary} and export with "
                "--results <its results file> --task <task>."
            )
        resolved = spec.resolve(_num_layers(source, args.pretrained))
        assert resolved is not None
        kept = resolved
        how = "the paper's default, 15 of 32 layers scaled" if spec.kind == "default" else "given by hand"
        origin = f"{how} ({spec})."
    if args.merge:
        exported = merge_adapter(source, kept, args.output, pretrained=args.pretrained, dtype=args.dtype, origin=origin)
        print(f"merged model written to {args.output}")
    else:
        exported = export_adapter(source, kept, args.output, origin=origin)
    print(exported.summary())
    return 0


def _recorded(path: Path, task: str | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A task's entry in a results file, and the file's entry on the adapter."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} is no readable results file ({error}).") from error
    record = (data.get("config") or {}).get("lora_drop") if isinstance(data, dict) else None
    if not record:
        raise ArgumentError(f"{path} was not written by a run of hf-lora-drop: it holds no config.lora_drop.")
    tasks = record["tasks"]
    if task is None and len(tasks) == 1:
        task = next(iter(tasks))
    if task not in tasks:
        raise ArgumentError(f"{path} holds the tasks {', '.join(tasks)}; --task must be one of them, got {task}.")
    return tasks[task] | {"task": task}, record["adapter"]


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


def _kept_in(entry: Mapping[str, Any]) -> LayerSet:
    kept = parse_layers(entry["layers"]).resolve(int(entry["num_layers"]))
    assert kept is not None
    return kept


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


def _num_layers(source: str, pretrained: str | None) -> int:
    """From the base model's configuration; its weights are not read."""
    from transformers import AutoConfig

    from lm_eval_lora_drop.adapter.files import open_adapter

    base = pretrained or open_adapter(source).config.get("base_model_name_or_path")
    if not base:
        raise ArgumentError(f"{source} does not name its base model. Give it with --pretrained.")
    try:
        return int(AutoConfig.from_pretrained(base).get_text_config().num_hidden_layers)
    except (OSError, ValueError, AttributeError) as error:
        raise ArgumentError(
            f"the configuration of {base}, which tells the number of decoder layers, cannot be read: give the base "
            "model with --pretrained (a folder or a Hub id)."
        ) from error
