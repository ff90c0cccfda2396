"""`lora-drop candidates`: sets of candidates as a file that `sweep_candidates=@FILE` takes."""

from __future__ import annotations

import argparse
import functools

from lm_eval_lora_drop.commands.options import command
from lm_eval_lora_drop.errors import ArgumentError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="names of candidate sets, as in sweep_candidates")
    parser.add_argument("--peft", required=True, metavar="ADAPTER", help="LoRA adapter: a folder or a Hub id")
    parser.add_argument("--pretrained", metavar="MODEL", help="base model (default: the adapter's)")


@command("candidates", "print candidate sets, one variant per line, for sweep_candidates=@FILE", _add_options)
def _candidates(args: argparse.Namespace) -> int:
    """Prints the candidates of sweep_candidates=NAME+... for an adapter, in the notation of variants: a file to
    shorten or extend by hand. See docs/howto/other-candidates.md.

    lora-drop candidates upper --peft ./my-adapter
    lora-drop candidates window strength --peft ./my-adapter > mine.txt
    lora-drop candidates modules --peft ./my-adapter --pretrained org/base
    """
    from lm_eval_lora_drop.adapter.files import open_adapter
    from lm_eval_lora_drop.adapter.names import read_names
    from lm_eval_lora_drop.commands.export import num_layers
    from lm_eval_lora_drop.engine.probe.scores import spectra
    from lm_eval_lora_drop.sweep.candidates import make_candidates
    from lm_eval_lora_drop.variant import AdapterShape

    if "cma_es" in args.names:
        raise ArgumentError(
            "the candidates of cma_es depend on scores: there is no list before the search. Name other sets, or sweep "
            "with sweep_candidates=cma_es."
        )
    files = open_adapter(args.peft)
    lora = [one for one in read_names(files.shapes, files.config) if one.part == "lora_A"]
    kinds = sorted({one.module.rpartition(".")[2] for one in lora})
    rank = max((min(files.shapes[one.name]) for one in lora), default=0)
    shape = AdapterShape(
        num_layers(args.peft, args.pretrained), tuple(kinds), rank, spectra=functools.partial(spectra, files)
    )
    print(f"# {' '.join(args.names)}")
    for variant in make_candidates(args.names, shape).variants:
        print(variant)
    return 0


add_parser = _candidates.add_parser
