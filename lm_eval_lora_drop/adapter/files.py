"""A LoRA adapter as it lies on disk or on the Hub: found, checked against its base model's shapes, fingerprinted.

Everything here runs before any weights of the base model are loaded, so that a wrong path costs seconds, not minutes.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from peft import PeftType
from safetensors import SafetensorError, safe_open

from lm_eval_lora_drop.errors import AdapterError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_LORA_PARTS = (".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter folder: its configuration and, without reading them, the shapes of its tensors."""

    source: str
    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of values in the weights file."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights; the folder's name and what else lies in it do not matter."""
        weights = self.folder / WEIGHTS
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        digest.update(_file_digest(weights if weights.is_file() else self.folder / PICKLED).encode())
        return f"sha256:{digest.hexdigest()}"


def open_adapter(source: str, revision: str | None = None) -> AdapterFiles:
    """Find the adapter `source` (a folder or a Hub id) and check that it is a complete LoRA adapter.

    Raises:
        AdapterError: no such adapter, not LoRA, or its weights cannot be read.
    """
    folder = _local_folder(source, revision)
    config = _read_config(source, folder)
    kind = config.get("peft_type")
    if kind != PeftType.LORA.value:
        raise AdapterError(
            f"peft={source} must be a LoRA adapter, but its {CONFIG} says peft_type={kind}. Only LoRA has one part for "
            "each decoder layer that can be dropped by itself; evaluate other adapters with --model hf."
        )
    return AdapterFiles(source, folder, config, _read_shapes(source, folder))


def trained_besides_lora(files: AdapterFiles) -> str | None:
    """What the adapter changes besides its LoRA: whole modules, tokens, biases. None where LoRA is all."""
    config = files.config
    named = [name for name in ("modules_to_save", "trainable_token_indices") if config.get(name)]
    if config.get("bias", "none") != "none":
        named.append(f"bias={config['bias']}")
    return ", ".join(named) or None


def base_fingerprint(pretrained: str, commit: str | None) -> str:
    """What identifies the base model: the commit on the Hub, or the content of a local folder's weights and config."""
    folder = Path(pretrained)
    if not folder.is_dir():
        return f"{pretrained}@{commit or 'unknown'}"
    files = sorted(
        file
        for pattern in ("*.safetensors", "*.bin", "*.gguf", "config.json", "tokenizer*.json")
        for file in folder.glob(pattern)
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{_file_digest(file)};".encode())
    return f"sha256:{digest.hexdigest()}"


def _local_folder(source: str, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
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
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise AdapterError(
            f"peft={source} is no folder here, and the Hub could not be asked for it ({type(error).__name__}). Check "
            "the path or the network connection."
        ) from error


def _read_config(source: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"peft={source} must be a PEFT adapter, but it has no {CONFIG}.") from None
    except ValueError as error:
        raise AdapterError(f"peft={source}: {CONFIG} is not valid JSON ({error}). Copy the adapter again.") from error
    if not isinstance(config, dict):
        raise AdapterError(f"peft={source}: {CONFIG} must hold an object, got a {type(config).__name__}.")
    return config


def _read_shapes(source: str, folder: Path) -> dict[str, tuple[int, ...]]:
    try:
        if (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, framework="np") as file:
                # safe_open has checked that the file is as long as its header says.
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        elif (folder / PICKLED).is_file():
            # Older adapters. weights_only unpickles tensors and nothing else.
            tensors = torch.load(folder / PICKLED, map_location="meta", weights_only=True)
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        else:
            raise AdapterError(f"peft={source} has no {WEIGHTS}. Copy the adapter again, with its weights.")
    except (SafetensorError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise AdapterError(
            f"peft={source}: the weights file cannot be read ({error}). It is probably truncated: copy or download it "
            "again."
        ) from error
    if not any(part in name for name in shapes for part in _LORA_PARTS):
        raise AdapterError(f"peft={source}: the weights file holds no LoRA tensors. Give an adapter that was trained.")
    return shapes


def check_against(files: AdapterFiles, model: Any, base: str) -> None:
    """Compare an adapter's tensors with the modules of its base model, which may lie on the meta device.

    Raises:
        AdapterError: the adapter was made for another model.
    """
    modules = dict(model.named_modules())
    misfits = []
    for name, shape in files.shapes.items():
        for part, dimension in ((".lora_A.", 1), (".lora_B.", 0)):
            if part not in name:
                continue
            path = name.removeprefix(_PREFIX).split(part)[0]
            module = modules.get(path)
            if module is None:
                misfits.append(f"{path} does not exist")
            elif (size := _features(module, part)) is not None and shape[dimension] != size:
                misfits.append(f"{path} has {size} {'inputs' if dimension else 'outputs'}, not {shape[dimension]}")
    if misfits:
        trained_on = files.config.get("base_model_name_or_path") or "a model it does not name"
        more = f" and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise AdapterError(
            f"peft={files.source} does not fit pretrained={base}: {misfits[0]}{more}. The adapter was trained on "
            f"{trained_on}; give that model as pretrained."
        )


def _features(module: Any, part: str) -> int | None:
    """Inputs (lora_A) or outputs (lora_B) of a linear layer; None for a module that has no such number."""
    if hasattr(module, "in_features"):
        return int(module.in_features if part == ".lora_A." else module.out_features)
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2 keeps its weights as (inputs, outputs)
        return int(weight.shape[0 if part == ".lora_A." else 1])
    return None


def _file_digest(file: Path) -> str:
    # hashlib.file_digest would do, from Python 3.11 on.
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
