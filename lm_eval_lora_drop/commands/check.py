"""`lora-drop check`: do PEFT, merged weights, an export and vLLM answer alike? Run it before an export is shipped."""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.commands.export import add_choice, choice
from lm_eval_lora_drop.commands.options import command, positive
from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import check_writable

if TYPE_CHECKING:
    from lm_eval_lora_drop.adapter.agreement import Served

DTYPES = ("float32", "bfloat16", "float16", "auto")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    parser.add_argument(
        "--export", type=Path, metavar="FOLDER", help="folder written by lora-drop export: adapter or merged model"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="file with one prompt per line, or a samples_*.jsonl of lm_eval"
    )
    parser.add_argument(
        "--limit", type=positive, default=8, help="number of prompts, from the file or built in (default 8)"
    )
    parser.add_argument("--tokens", type=positive, default=16, help="tokens to generate after each prompt (default 16)")
    parser.add_argument(
        "--server", metavar="URL", help="OpenAI-compatible server of the export, for example http://localhost:8000/v1"
    )
    parser.add_argument("--served-model", metavar="NAME", help="with --server: name of the model or adapter there")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of all models (default float32)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="output folder for survival.png, a figure of what a merge keeps",
    )
    parser.add_argument("--device", default="cpu", help="device for PEFT and Transformers (default cpu)")


@command("check", "compare PEFT, merged weights, an export and vLLM on a few prompts", _add_options)
def _check(args: argparse.Namespace) -> int:
    """Checks that the adapter is valid and takes effect, and compares what is evaluated with merged weights, with an
    export (by default one made now), with vLLM where it is installed, and with a server. Exit status 1 where they
    differ. Also names what usually makes a LoRA score below its base model (chat template, first and last token, base
    model).

    lora-drop check --peft ./my-adapter --boundary full
    lora-drop check --results out --export ./smaller --prompts out/samples_gsm8k.jsonl
    lora-drop check --peft ./my-adapter --boundary 20 --server http://localhost:8000/v1 --served-model smaller
    """
    prompts = None if args.prompts is None else read_prompts(args.prompts, args.limit)
    if args.export is not None and not args.export.is_dir():
        raise ArgumentError(f"--export must be a folder that lora-drop export wrote; {args.export} is not a directory.")
    if (args.server is None) != (args.served_model is None):
        raise ArgumentError(
            "--server and --served-model go together: give the URL and the name of what is served there."
        )
    if args.output is not None:
        check_writable(args.output, "--output")
    made = choice(args, "check")
    source, kept = made.source, made.kept
    from lm_eval_lora_drop.adapter.agreement import PROMPTS, check_agreement
    from lm_eval_lora_drop.adapter.files import open_adapter
    from lm_eval_lora_drop.commands.causes import EvaluatedPrompts, find_causes

    files = open_adapter(source)
    # What the run evaluated, where there is one: the adapter may name another place.
    base = files.base_model(args.pretrained or (made.run.model_args.get("pretrained") if made.run else None))
    asked = prompts or PROMPTS[: args.limit]
    served: Sequence[Served] = ()
    if args.server is not None:
        from lm_eval_lora_drop.commands.served import ask_server

        # Before the model is loaded, which takes minutes: the address may be wrong.
        served = ask_server(args.server, args.served_model, asked, args.tokens)
    with tempfile.TemporaryDirectory(prefix="lora-drop-") as scratch:
        found = check_agreement(
            source,
            kept,
            base,
            export=args.export,
            prompts=asked,
            tokens=args.tokens,
            dtype=args.dtype,
            device=args.device,
            scratch=Path(scratch),
            others={"vLLM": _vllm(base, args.dtype)},
            served=served,
        )
    causes = find_causes(files, base, EvaluatedPrompts.of(made.run, made.task), prompts or ())
    print(f"{source} on {base}, {kept.label}")
    print(found.table())
    if found.survival is not None:
        survival = found.survival
        print(f"\nLeft of the LoRA when it is folded into weights of {survival.dtype}: {survival.total:.3f}")
        if not survival.is_whole:
            print(survival.table())
        if args.output is not None:
            from lm_eval_lora_drop.show.figures.survival import save_survival_figure

            print(*save_survival_figure(survival, args.output), sep="\n")
    if causes:
        how = "the run" if made.run is not None else "lm_eval's defaults (name a run with --results)"
        print(f"\nWhy this adapter may score below its base model, by its files and {how}:")
        print("\n".join(f"- {line}" for line in causes))
    return 0 if found.agrees else 1


add_parser = _check.add_parser


def read_prompts(path: Path, limit: int) -> list[str]:
    """The first prompts of a text file, one a line, or of the documents in a samples file of lm_eval.

    Raises:
        ArgumentError: there is none.
    """
    from lm_eval_lora_drop.files import read_lines

    found: list[str] = []
    for number, line in read_lines(path):
        if path.suffix == ".jsonl":
            try:
                prompt = json.loads(line)["arguments"]["gen_args_0"]["arg_0"]
            except (ValueError, KeyError, TypeError) as error:
                raise ArgumentError(
                    f"{path}, line {number}: no sample of lm_eval (arguments.gen_args_0.arg_0)."
                ) from error
            line = str(prompt)
        if line not in found:
            found.append(line)
        if len(found) == limit:
            break
    if not found:
        raise ArgumentError(f"{path} has no prompt. Write one per line.")
    return found


def _vllm(base: str, dtype: str) -> Any:
    """vLLM as one more program to ask, or why it is not."""
    if importlib.util.find_spec("vllm") is None:
        return "not installed"
    from lm_eval_lora_drop.backends.vllm_lora import answers_of

    return lambda folder, asked, tokens: answers_of(base, folder, asked, tokens, dtype)
