"""What is in memory and changes an answer: weights, configurations, tokenizer, the code of the model's classes.

It is read when an evaluation begins, not when the model is loaded: a model may be trained or edited in between.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from lm_eval_lora_drop.record.fingerprint import described, digest, digest_blocks, digest_file

ADAPTER_PARTS = ("lora_", "modules_to_save", "token_adapter")
"""What is in the name of every tensor that an adapter brings."""
_CHUNK = 1 << 22
"""Numbers that are summed at once, so that their copies as 64-bit integers stay small."""
# Their versions stand in the header of a journal.
_LIBRARIES = ("torch", "transformers", "peft")
# Where things lie, which release wrote the file, and notes of what was done with the object so far.
_NO_SETTING = {
    *("_name_or_path", "name_or_path", "transformers_version", "_original_object_hash", "_from_model_config"),
    *("deprecation_warnings", "verbose", "_tokenizer", "_in_target_context_manager"),
}


def loaded_model(model: PeftModel, tokenizer: Any) -> dict[str, Any]:
    """What a Transformers model with PEFT adapters answers by, for `identity`."""
    base = model.get_base_model()
    return {
        "config": configuration(base.config),
        "generation_config": configuration(base.generation_config),
        "tokenizer": tokenizer_digest(tokenizer),
        "adapters": digest(described(dict(model.peft_config)), _switches(model)),
        "weights": {"adapter": weights_digest(model, adapter=True), "base": weights_digest(model, adapter=False)},
        "code": code_digest([*{type(module) for module in model.modules()}, type(tokenizer)]),
        "training": model.training,
        "precision": torch.get_float32_matmul_precision(),  # of products: TF32 and bfloat16 round otherwise
    }


def configuration(config: Any) -> Any:
    """The settings of a configuration object as JSON has them, those it hides (the attention's implementation) among
    them; nested configurations too."""
    if config is None:
        return None
    return {
        name: configuration(value) if hasattr(value, "to_dict") else described(value)
        for name, value in sorted(vars(config).items())
        if name not in _NO_SETTING
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Over the vocabulary, the merges, the added and special tokens, the chat template and every setting."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        files = json.loads(backend.to_str())
        # What the last call asked for.
        files.pop("padding", None)
        files.pop("truncation", None)
        return digest(type(tokenizer).__qualname__, files, configuration(tokenizer))
    # One in Python keeps its vocabulary as it likes, and caches beside it; it knows how to write itself down.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest(type(tokenizer).__qualname__, [(path.name, digest_file(path)) for path in found])


def code_digest(classes: Iterable[type]) -> str | None:
    """Over the source files of the classes that are not the libraries' own, with the modules that came with them
    (`trust_remote_code`); None where there are none."""
    files: set[Path] = set()
    for one in classes:
        root = one.__module__.partition(".")[0]
        try:
            file = Path(inspect.getfile(one))
        except (TypeError, OSError):  # built in, or typed at a prompt
            continue
        if root == "transformers_modules":
            files |= set(file.parent.glob("*.py"))
        elif root not in _LIBRARIES and file.is_file():
            files.add(file)
    return digest(sorted((file.name, digest_file(file)) for file in files)) if files else None


def weights_digest(model: torch.nn.Module, *, adapter: bool) -> str:
    """Over the tensors of the adapters, or over all others, whatever device they are on.

    Of each its name, type and shape, and the sums of its rows and of its columns, read as integers: exact, as fast as
    the memory, and another one for every edit but one that keeps all of these sums.
    """

    def blocks() -> Iterator[bytes]:
        seen: dict[tuple[Any, ...], str] = {}
        for name, tensor in sorted(model.state_dict().items()):
            if any(part in name for part in ADAPTER_PARTS) == adapter:
                yield name.encode()
                yield from _content(tensor, name, seen)

    return digest_blocks(blocks())


def _content(value: Any, name: str, seen: dict[tuple[Any, ...], str]) -> Iterator[bytes]:
    if not isinstance(value, torch.Tensor):
        yield digest(described(value)).encode()
        return
    yield f"{value.dtype}{tuple(value.shape)}".encode()
    if hasattr(value, "__tensor_flatten__"):
        # A quantised tensor, made of plain ones.
        inner, _ = value.__tensor_flatten__()
        for part in inner:
            yield from _content(getattr(value, part), f"{name}.{part}", seen)
        return
    if value.device.type == "meta" or not value.numel():
        return
    value = value.detach()
    place = (value.data_ptr(), value.dtype, value.shape, value.stride())
    if place in seen:
        yield seen[place].encode()
        return
    seen[place] = name
    for sums in _sums(value):
        yield sums.cpu().numpy().tobytes()


def _sums(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The bits of a tensor as integers: those of a small one, else the sums of rows and of columns."""
    flat = tensor.contiguous().reshape(-1)
    row = tensor.shape[-1] if tensor.dim() > 1 else flat.numel()
    # The widest integer that divides a row and where the first one begins: fewer numbers to sum.
    places = (row * flat.itemsize, flat.storage_offset() * flat.itemsize)
    width = next(
        kind for kind in (torch.int32, torch.int16, torch.uint8) if not any(place % kind.itemsize for place in places)
    )
    numbers = flat.view(torch.uint8).view(width)
    if tensor.dim() < 2:
        yield numbers
        return
    rows = numbers.view(-1, row * flat.itemsize // width.itemsize)
    columns = torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
    for part in rows.split(max(1, _CHUNK // rows.shape[1])):
        wide = part.to(torch.int64)
        columns += wide.sum(0)
        yield wide.sum(1)
    yield columns


def _switches(model: torch.nn.Module) -> Mapping[str, Any]:
    """What the adapter's layers hold besides tensors: scalings, flags, which adapter is on, by module.

    Public attributes by introspection, so that a new one of PEFT counts, and PEFT's own words for what is on.
    """
    return {
        name: described(
            {
                **{key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"},
                "active_adapters": module.active_adapters,
                "disable_adapters": module.disable_adapters,
            }
        )
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
