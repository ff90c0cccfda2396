"""Identity changes: a base model, adapter or argument is edited between two sweeps that share a folder and a cache.

The oracle is the second sweep in a folder of its own: answers of before the edit must not be among its own.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.matrix_cases import Case
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.errors import ArgumentError
from testing.toy import evaluate, make_task

ANEW, SAME = "asked anew", "no answer changes"
Edit = Callable[[dict[str, Any]], None]


def identity_cases() -> list[Case]:
    """Edits of every kind of file, and of arguments."""
    edits: dict[str, Edit] = {
        "generation_config.json: repetition_penalty": partial(_json, "generation_config.json", repetition_penalty=3.0),
        "generation_config.json: eos_token_id": partial(_json, "generation_config.json", eos_token_id=list(range(200))),
        "config.json: rms_norm_eps": partial(_json, "config.json", rms_norm_eps=0.5),
        "tokenizer.json: merges": _without_merges,
        "tokenizer_config.json: eos_token": partial(_json, "tokenizer_config.json", eos_token="e"),
        "adapter_config.json: lora_alpha": partial(_json, "adapter_config.json", where="peft", lora_alpha=1),
        "adapter_config.json: use_rslora": partial(_json, "adapter_config.json", where="peft", use_rslora=True),
        "weights of the adapter": partial(_weights, "peft", "adapter_model.safetensors"),
        "weights of the base": partial(_weights, "pretrained", "model.safetensors"),
        "max_length": lambda args: args.update(max_length=20),
        "add_bos_token": lambda args: args.update(add_bos_token=True),
        "dtype": lambda args: args.update(dtype="bfloat16"),
        "attn_implementation": lambda args: args.update(attn_implementation="eager"),
        "nothing": lambda _: None,
    }
    return [Case("identity", name, edit=edit) for name, edit in edits.items()]


def run_identity(case: Case, paths: Mapping[str, str], folder: Path) -> tuple[str, int, int]:
    """What happened, how many scores were compared, and how many of them differ from the oracle's."""
    assert case.edit is not None
    args: dict[str, Any] = {**paths, "dtype": "float32"}
    shared, cache = folder / "sweeps", str(folder / "answers")
    before = _scores(args, shared, use_cache=cache)
    case.edit(args)
    oracle = _scores(args, folder / "alone")
    found = [_scores(args, shared)]
    # Refused, wherever something has changed.
    with contextlib.suppress(ArgumentError):
        found.append(_scores(args, shared, use_cache=cache))
    wrong = sum(one != other for scores in found for one, other in zip(scores, oracle, strict=True))
    return SAME if before == oracle else ANEW, len(found) * len(oracle), wrong


def _scores(args: Mapping[str, Any], folder: Path, **way: Any) -> list[float]:
    """A number for each answer, of the sweep and of the evaluated split."""
    task = make_task(
        process_results=lambda _, results: {"text": float(zlib.crc32(results[0].encode("utf-8", "surrogatepass")))},
        metric_list=[{"metric": "text", "aggregation": "mean", "higher_is_better": True}],
    )
    lm = LoraDropLM(**args, device="cpu", batch_size=2, boundary="auto", sweep_limit=4, sweep_dir=str(folder))
    results = evaluate(lm, task, **way)
    sweep = results["config"]["lora_drop"]["tasks"]["toy"]["sweep"]
    swept = [item for row in sweep["candidates"] for item in row["items"]]
    return [*swept, *(sample["text"] for sample in results["samples"]["toy"])]


def _json(name: str, args: Mapping[str, Any], where: str = "pretrained", **values: Any) -> None:
    file = Path(args[where]) / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _without_merges(args: Mapping[str, Any]) -> None:
    file = Path(args["pretrained"]) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = []
    file.write_text(json.dumps(content))


def _weights(where: str, name: str, args: Mapping[str, Any]) -> None:
    file = Path(args[where]) / name
    save_file({key: value * 1.5 for key, value in load_file(file).items()}, file, {"format": "pt"})
