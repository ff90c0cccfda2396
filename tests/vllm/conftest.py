"""A tiny model that vLLM's attention can run, and engines that several tests share: starting one takes seconds."""

import importlib.util
import json
import os
from unittest import mock

import pytest
import transformers

from testing import tiny

# In one process, without a worker of its own; and without binding threads to cores, which starves on a shared machine.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

SMALL = {"max_model_len": 256, "enforce_eager": True, "distributed_executor_backend": "uni", "max_num_seqs": 64}


def pytest_collection_modifyitems(items):
    """Everything in this folder needs vLLM."""
    absent = importlib.util.find_spec("vllm") is None
    for item in items:
        if "/tests/vllm/" in str(item.path):
            item.add_marker(pytest.mark.vllm)
            if absent:
                item.add_marker(pytest.mark.skip(reason="vLLM is not here; see tools/setup_vllm_cpu.sh"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a tiny Llama with four layers, and heads of a size that vLLM has."""
    sizes = {**tiny.SIZES, "hidden_size": 128, "num_attention_heads": 4}
    wide = {"llama": lambda layers: transformers.LlamaConfig(**sizes, num_hidden_layers=layers)}
    with mock.patch.dict(tiny.ARCHITECTURES, wide):
        return tiny.make_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base):
    """The folder of a LoRA adapter with B != 0 on every linear layer of `tiny_base`."""
    return tiny.make_adapter(tiny_base, tiny_base.parent / "adapter")


@pytest.fixture(scope="session")
def engines():
    """The engines that run, by what they were started with."""
    return {}


@pytest.fixture
def shared_engines(engines, monkeypatch):
    """The harness's VLLM gets the engine that runs already where it asks for one with the same arguments."""
    from lm_eval.models import vllm_causallms

    start = vllm_causallms.LLM

    def shared(**arguments):
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key not in engines:
            engines[key] = start(**arguments)
        return engines[key]

    monkeypatch.setattr(vllm_causallms, "LLM", shared)
