"""A LoRA adapter as it lies on disk or on the Hub: found, checked, read, fingerprinted.

Everything here runs before any weights of the base model are loaded, so that a wrong path costs seconds, not minutes.
An adapter is somebody else's: nothing of it is executed, and whatever is wrong with it ends in one message.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from peft import PeftType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from lm_eval_lora_drop.adapter.names import check_names, check_wrapper, read_names
from lm_eval_lora_drop.adapter.patterns import check_patterns
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.record.fingerprint import PREFIX, digest_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_LORA_PARTS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")
_MAX_CONFIG = 16 << 20
# What safetensors calls the dtypes that are compared with a base model's.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FULL = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),
)

# Not what a training leaves beside the weights.
_OF_A_BASE = re.compile(
    r"(?!training_args|optimizer|scheduler).*\.(safetensors|bin|gguf|py)|(config|tokenizer|tokenizer_config)\.json"
)
_NAMES = {"type": "array", "items": {"type": "string"}}
_NUMBERS = {"type": ["object", "null"], "additionalProperties": {"type": "number", "exclusiveMinimum": 0}}
# What of PEFT's LoraConfig is read here; a newer PEFT's entries may be anything.
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "r": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "lora_alpha": {"type": "number", "minimum": -1e30, "maximum": 1e30},
        "rank_pattern": {**_NUMBERS, "additionalProperties": {"type": "integer", "minimum": 1, "maximum": 1_000_000}},
        "alpha_pattern": _NUMBERS,
        "target_modules": {"anyOf": [{"type": ["string", "null"]}, _NAMES]},
        "exclude_modules": {"anyOf": [{"type": ["string", "null"]}, _NAMES]},
        "target_parameters": {"anyOf": [{"type": "null"}, _NAMES]},
        "modules_to_save": {"anyOf": [{"type": "null"}, _NAMES]},
        "layers_pattern": {"anyOf": [{"type": ["string", "null"]}, _NAMES]},
        "layers_to_transform": {
            "anyOf": [{"type": ["integer", "null"]}, {"type": "array", "items": {"type": "integer"}}]
        },
        "layer_replication": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 10_000}]},
        "bias": {"enum": ["none", "all", "lora_only"]},
        "use_rslora": {"type": ["boolean", "null"]},
        "use_dora": {"type": ["boolean", "null"]},
        "lora_bias": {"type": ["boolean", "null"]},
        "init_lora_weights": {"type": ["boolean", "string", "null"]},
        "base_model_name_or_path": {"type": ["string", "null"]},
    },
}


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter folder: its configuration and, without reading them, the shapes of its tensors and the dtype
    that most of its LoRA has (`bfloat16`)."""

    source: str
    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtype: str

    @property
    def weights(self) -> Path:
        """The weights file: safetensors, or what an old PEFT has pickled."""
        file = self.folder / WEIGHTS
        return file if file.is_file() else self.folder / PICKLED

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the embedding or head has that the adapter brings a part of; None where it brings none."""
        found = (tensor.vocabulary(self.shapes[tensor.name]) for tensor in read_names(self.shapes, self.config))
        return next((tokens for tokens in found if tokens is not None), None)

    def base_model(self, given: str | None = None) -> str:
        """The base model: the one given, else the one that the adapter names.

        Raises:
            AdapterError: neither is there.
        """
        base = given or self.config.get("base_model_name_or_path")
        if not base:
            raise AdapterError(f"{self.source} does not name its base model. Give it with --pretrained.")
        return str(base)

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights; the folder's name and what else lies in it do not matter."""
        content = json.dumps(self.config, sort_keys=True) + digest_file(self.weights).removeprefix(PREFIX)
        return PREFIX + hashlib.sha256(content.encode()).hexdigest()


def open_adapter(source: str, revision: str | None = None) -> AdapterFiles:
    """Find the adapter `source` (a folder or a Hub id) and check that it is a complete LoRA adapter.

    Raises:
        AdapterError: no such adapter, not LoRA, a configuration that cannot be used, or weights that cannot be read.
    """
    folder = _local_folder(source, revision)
    config = _read_config(source, folder)
    kind = config.get("peft_type")
    if kind != PeftType.LORA.value:
        raise AdapterError(
            f"peft={source} must be a LoRA adapter, but its {CONFIG} says peft_type={str(kind)[:80]}. Only LoRA has "
            "one part for each decoder layer that can be dropped by itself; evaluate other adapters with --model hf."
        )
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(_SCHEMA).iter_errors(config))
    if error is not None:
        raise AdapterError(f"peft={source}: {CONFIG}, {error.json_path[:80]}: {error.message[:200]}. Correct it.")
    # What an old or hand-written configuration leaves out has PEFT's defaults.
    config = {"r": 8, "lora_alpha": 8, **config}
    files = AdapterFiles(source, folder, config, *_read_header(source, folder))
    check_names(files.shapes, str(files.weights), source)
    check_patterns(config, list(dict.fromkeys(name.module for name in read_names(files.shapes, config))), source)
    return files


def load_tensors(files: AdapterFiles) -> dict[str, torch.Tensor]:
    """The adapter's tensors by name, on the CPU.

    Raises:
        AdapterError: they cannot be read.
    """
    try:
        if files.weights.name == WEIGHTS:
            loaded: dict[str, torch.Tensor] = load_file(files.weights)
        else:
            loaded = torch.load(files.weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unreadable(files.source, error) from error
    # Tied tensors of a pickled file share memory, which safetensors refuses. torch computes nothing with 8-bit floats;
    # float16 holds every one of them exactly.
    return {
        name: tensor.clone().contiguous() if tensor.dtype.itemsize > 1 else tensor.to(torch.float16)
        for name, tensor in loaded.items()
    }


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder to fill that becomes `destination` at the end: who sees it sees all of it, also after a crash.

    Raises:
        ArgumentError: `destination` exists, or its parent cannot be written to.
    """
    check_new(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name[:100]}.")
    except (OSError, ValueError) as error:
        raise _unwritable(destination, error) from error
    with scratch as name:
        folder = Path(name) / "new"
        folder.mkdir()
        try:
            yield folder
            # On the disk before it has its name: after a power cut a file that was only handed over may be empty.
            for file in folder.rglob("*"):
                _sync(file)
            check_new(destination)
            os.rename(folder, destination)
            _sync(destination.parent)
        except (OSError, SafetensorError) as error:
            # safetensors has one class for a full disk and for tensors that it does not take.
            if not (error.errno in _FULL if isinstance(error, OSError) else "I/O error" in str(error)):
                raise
            raise _unwritable(destination, error) from error


def _sync(path: Path) -> None:
    if os.name == "nt":  # neither a folder nor a file that is open for reading can be synchronised there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(destination: Path, error: Exception) -> ArgumentError:
    why = getattr(error, "strerror", None) or error
    return ArgumentError(f"{str(destination)[:200]!r} cannot be written ({why}). Name a folder that can.")


def check_new(destination: Path) -> None:
    """Raise ArgumentError where `destination` exists, a dangling link included."""
    try:
        exists = os.path.lexists(destination)
    except ValueError as error:
        raise _unwritable(destination, error) from error
    if exists:
        raise ArgumentError(f"{destination} exists already; what is exported is written to a new folder. Name another.")


def trained_besides_lora(files: AdapterFiles) -> str | None:
    """What the adapter changes besides its LoRA: whole modules, tokens, biases. None where LoRA is all."""
    config = files.config
    named = [name for name in ("modules_to_save", "trainable_token_indices") if config.get(name)]
    if config.get("bias", "none") != "none":
        named.append(f"bias={config['bias']}")
    return ", ".join(named) or None


def base_fingerprint(pretrained: str, commit: str | None) -> str:
    """What identifies the base model: the commit on the Hub, or a folder's weights, code, config and tokenizer."""
    folder = Path(pretrained)
    if not folder.is_dir():
        return f"{pretrained}@{commit or 'unknown'}"
    files = sorted(file for file in folder.iterdir() if _OF_A_BASE.fullmatch(file.name))
    content = "".join(f"{file.name}:{digest_file(file).removeprefix(PREFIX)};" for file in files)
    return PREFIX + hashlib.sha256(content.encode()).hexdigest()


def check_against(files: AdapterFiles, model: Any, base: str) -> None:
    """Compare an adapter's tensors with the modules of its base model, which may lie on the meta device.

    Raises:
        AdapterError: the adapter was made for another model.
    """
    modules = dict(model.named_modules())
    check_patterns(files.config, list(modules), files.source)
    misfits = []
    for tensor in read_names(files.shapes, files.config):
        module = modules.get(tensor.module)
        shape = files.shapes[tensor.name]
        dimension = {"lora_A": 1, "lora_B": 0}.get(tensor.part)
        tokens = getattr(module, "num_embeddings", None) or getattr(module, "out_features", None)
        if tokens is not None and (its := tensor.vocabulary(shape)) not in (None, tokens):
            raise AdapterError(
                f"peft={files.source} has an embedding of {its} tokens, and that of pretrained={base} has {tokens}: "
                "lm_eval resizes the base model's to its tokenizer. Give the tokenizer that the adapter was trained "
                f"with: tokenizer={files.source if any(files.folder.glob('tokenizer*')) else '<its folder>'}."
            )
        if dimension is None or tensor.value != "weight" or files.config.get("layer_replication"):
            continue
        if module is None:
            # Since version 5 Transformers keeps the experts of a mixture in one module; PEFT converts older adapters.
            if ".experts." not in tensor.module:
                check_wrapper(tensor.name, modules, files.config, str(files.weights), files.source)
                misfits.append(f"{tensor.module} does not exist")
        # Block-diagonal LoRA and QA-LoRA have narrower factors; PEFT itself tells whether they fit.
        elif files.config.get("use_bdlora") or files.config.get("use_qalora"):
            continue
        elif (size := _features(module, dimension)) is not None and (len(shape) < 2 or shape[dimension] != size):
            misfits.append(f"{tensor.module} has {size} {'inputs' if dimension else 'outputs'}, not {shape}")
    if misfits:
        trained_on = str(files.config.get("base_model_name_or_path") or "a model it does not name")
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        same = Path(trained_on).name.lower() == Path(base).name.lower()
        raise AdapterError(
            f"peft={files.source} does not fit pretrained={base}: {misfits[0]}{more}. "
            + (
                "The adapter names a model of this name as its base; it was saved from another class or release of it. "
                f"The model's own modules are called as {_example(modules)}. Rename the tensors, or give that model."
                if same
                else f"The adapter was trained on {trained_on}; give that model as pretrained."
            )
        )


def _example(modules: Iterable[str]) -> str:
    """The first module inside a decoder layer, as an example of a model's names."""
    return next((name for name in modules if re.search(r"\.\d+\.\w+\.", name)), next(iter(modules), "none"))


def _local_folder(source: str, revision: str | None) -> Path:
    try:
        path = Path(source).expanduser()
        is_folder = path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        # A NUL, a name that is too long, the home of nobody.
        raise AdapterError(
            f"peft={source[:200]!r} is not a valid path ({error}). Give the adapter's folder or Hub id."
        ) from error
    if is_folder:
        if not (path / CONFIG).is_file():
            merged = (path / "config.json").is_file()
            hint = (
                "This looks like a full model, perhaps one with the adapter merged into it: layers can only be dropped "
                "from an adapter that was saved by itself."
                if merged
                else "Point peft= at the folder that PeftModel.save_pretrained wrote."
            )
            raise AdapterError(f"peft={source} must be a PEFT adapter, but the folder has no {CONFIG}. {hint}")
        return path
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=["adapter_*"]))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise AdapterError(
            f"peft={source} is neither a folder here nor a repository on the Hub. Check the path; a private repository "
            "needs a login (hf auth login)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise AdapterError(
            f"peft={source}: no such directory, and the Hub is unreachable ({type(error).__name__}). Check the path or "
            "the network connection."
        ) from error


def _read_config(source: str, folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise AdapterError(f"peft={source} must be a PEFT adapter, but it has no {CONFIG}.")
    try:
        if file.stat().st_size > _MAX_CONFIG:
            raise AdapterError(
                f"peft={source}: {CONFIG} has more than {_MAX_CONFIG >> 20} MiB. Copy the adapter again."
            )
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise AdapterError(f"peft={source}: {CONFIG} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"peft={source}: {CONFIG} is not valid JSON ({error}). Copy the adapter again.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"peft={source}: {CONFIG} must hold an object, got a {type(config).__name__}.")
    return config


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _read_header(source: str, folder: Path) -> tuple[dict[str, tuple[int, ...]], str]:
    """The shapes of all tensors, and the dtype of most of those that are LoRA."""
    try:
        if (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, framework="np") as file:
                # safe_open has checked that the file is as long as its header says.
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
                dtypes = {name: _DTYPES.get(one.get_dtype(), one.get_dtype()) for name, one in slices.items()}
        elif (folder / PICKLED).is_file():
            # Older adapters. weights_only unpickles tensors and nothing else.
            tensors = torch.load(folder / PICKLED, map_location="meta", weights_only=True)
            shapes = {str(name): tuple(tensor.shape) for name, tensor in tensors.items()}
            dtypes = {str(name): str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        else:
            raise AdapterError(f"peft={source} has no {WEIGHTS}. Copy the adapter again, with its weights.")
    except AdapterError:
        raise
    except Exception as error:
        # What a damaged pickle may raise has no end; nothing but reading happens here.
        raise _unreadable(source, error) from error
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise AdapterError(
            f"peft={source}: {len(empty)} of {len(shapes)} tensors are empty, the first is {empty[0]}. "
            "DeepSpeed ZeRO-3 saved them without gathering: set stage3_gather_16bit_weights_on_model_save, or run "
            "zero_to_fp32.py on the checkpoint, and save the adapter again."
        )
    of_lora = Counter(dtypes[name] for name in shapes if any(part in name for part in _LORA_PARTS))
    if not of_lora:
        raise AdapterError(f"peft={source}: the weights file holds no LoRA tensors. Give an adapter that was trained.")
    return shapes, of_lora.most_common(1)[0][0]


def _unreadable(source: str, error: Exception) -> AdapterError:
    return AdapterError(
        f"peft={source}: the weights file cannot be read ({str(error)[:200]}). It is probably truncated: copy or "
        "download it again."
    )


def _features(module: Any, dimension: int) -> int | None:
    """Inputs (dimension 1, of A) or outputs (0, of B) of a linear layer; None for a module that has no such number."""
    if hasattr(module, "in_features"):
        return int(module.in_features if dimension else module.out_features)
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2 keeps its weights as (inputs, outputs)
        return int(weight.shape[0 if dimension else 1])
    return None
