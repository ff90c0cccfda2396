"""Loads and scores `lora_drop_json`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from lm_eval_lora_drop.metrics.fields import score_fields
from lm_eval_lora_drop.metrics.shape import shape


def _load_generator() -> Any:
    # The harness loads this file by its path, outside any package, so a neighbour has to be loaded the same way.
    spec = importlib.util.spec_from_file_location("lora_drop_json_generate", Path(__file__).with_name("generate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = _load_generator()
VALIDATOR = Draft202012Validator(generator.SCHEMA)


def load(data_seed: int = generator.SEED, **_others: Any) -> Any:
    """All splits, generated; `--metadata '{"data_seed": 1}'` makes others."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(generator.generate(split, data_seed)) for split in generator.SIZES})


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, float]:
    """The fields, the format, and the shape of the output."""
    prediction = results[0].strip()
    return {**score_fields(prediction, json.loads(doc["fields"]), VALIDATOR), **shape(prediction, max_gen_toks)}
