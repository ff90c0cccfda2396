"""A device that is not there: tensors that compute on the CPU, say that they lie elsewhere, and refuse to be mixed.

As on a GPU, a tensor on `pretend:0` may not meet one of the CPU or of `pretend:1` (numbers without dimensions may), and
what brings a value back to the host, or an array from it, waits for the device. Launches and such waits are counted.
`python -m testing.pretend_device ARCHITECTURE ... [--two ARCHITECTURE ...]` runs both passes there, with the layers of
the latter spread over two, and prints what it found as JSON: in a process of its own, because a backend cannot be
unregistered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretend"
COUNTS = {"launches": 0, "waits": 0}
_MOVES = {"_to_copy", "copy_"}
_READ_BY_HOST = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
_NO_KERNEL = {
    *(
        "view",
        "_unsafe_view",
        "expand",
        "slice",
        "select",
        "t",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "detach",
    ),
    *(
        "alias",
        "as_strided",
        "split",
        "split_with_sizes",
        "unbind",
        "_reshape_alias",
        "unfold",
        "diagonal",
        "lift_fresh",
    ),
}


class Elsewhere(torch.Tensor):
    """A tensor of the pretend device `place`; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here, place=0):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=torch.device(NAME, place), requires_grad=False,
        )  # fmt: skip

    def __init__(self, here, place=0):
        self.here = here
        self.place = place

    def __repr__(self):
        return f"Elsewhere({self.here!r}, {self.place})"

    def tolist(self):
        COUNTS["waits"] += 1
        return self.here.tolist()

    def numpy(self, *_, **__):
        raise TypeError("a device's tensor has no numpy array; call cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within this mode tensors can be made on the pretend device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Elsewhere) or _is_pretend(leaf) for leaf in leaves):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


def dispatch(func, args, kwargs):
    """One operation of which something lies, or shall lie, on the pretend device."""
    name = func._schema.name.split("::")[-1]
    target = kwargs.get("device")
    if name in _MOVES:
        return _move(func, name, target, args, kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    at_home = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    indexing = "index" in name
    places = {tensor.place for tensor in away if tensor.dim() or indexing}
    if len(places) > 1 or (away and at_home and not indexing):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {sorted(places)} and the CPU")
    if name in _READ_BY_HOST or (indexing and away and at_home):
        COUNTS["waits"] += 1
    place = min(places) if places else (away[0].place if away else 0)
    kwargs = dict(kwargs)
    lies_away = bool(away)
    if target is not None:
        lies_away, place = _is_pretend(target), torch.device(target).index or 0
    if target is not None or "device" in {argument.name for argument in func._schema.arguments}:
        kwargs["device"] = "cpu"
    if "pin_memory" in kwargs:
        kwargs["pin_memory"] = False
    args_here, kwargs_here = tree_map(_here, (args, kwargs))
    found = func(*args_here, **kwargs_here)
    if not lies_away:
        return found
    COUNTS["launches"] += name not in _NO_KERNEL and not name.endswith("view")
    written = [
        value
        for value, argument in [
            *zip(args, func._schema.arguments, strict=False),
            *((kwargs[a.name], a) for a in func._schema.arguments if a.name in kwargs),
        ]
        if argument.alias_info and argument.alias_info.is_write
    ]
    if written and isinstance(found, torch.Tensor) and isinstance(written[0], Elsewhere):
        return written[0]
    return tree_map(lambda leaf: Elsewhere(leaf, place) if isinstance(leaf, torch.Tensor) else leaf, found)


def _move(func, name, target, args, kwargs):
    if name == "copy_":
        into, source = args[:2]
        _here(into).copy_(_here(source))
        COUNTS["launches" if isinstance(into, Elsewhere) else "waits"] += 1
        return into
    source = args[0]
    away = isinstance(source, Elsewhere) if target is None else _is_pretend(target)
    found = func(_here(source), *args[1:], **{**kwargs, "device": "cpu"})
    if not away:
        COUNTS["waits"] += isinstance(source, Elsewhere)
        return found
    COUNTS["launches"] += 1
    # What lies in ordinary memory is sent when all before it is done; of nothing there is nothing to send.
    COUNTS["waits"] += not isinstance(source, Elsewhere) and source.dim() > 0 and source.numel() > 0
    if target is None:
        return Elsewhere(found, source.place)
    return Elsewhere(found, torch.device(target).index or 0)


def _here(leaf):
    if isinstance(leaf, Elsewhere):
        return leaf.here
    return torch.device("cpu") if isinstance(leaf, torch.device) and _is_pretend(leaf) else leaf


def _is_pretend(device):
    return isinstance(device, (torch.device, str)) and str(device).partition(":")[0] in (NAME, "privateuseone")


def install():
    """Register the device; must come before anything of ours or of the harness is imported."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    module = types.ModuleType(f"torch.{NAME}")
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.is_available = lambda: True
    module.device_count = lambda: 2
    module.current_device = lambda: 0
    module.manual_seed_all = lambda seed: None
    module._is_in_bad_fork = lambda: False
    module.empty_cache = lambda: None
    sys.modules[module.__name__] = module
    _setup_privateuseone_for_python_backend(NAME, module)
    torch._C._set_only_lift_cpu_tensors(True)
    # Wrapped tensors cannot be made in inference mode.
    torch.set_grad_enabled(False)
    torch.inference_mode = lambda mode=True: torch.no_grad() if not callable(mode) else torch.no_grad()(mode)


def spread(lm, two):
    """Send the model to pretend:0; with `two` the upper half of the layers and what follows them to pretend:1, with
    accelerate's hooks, as `parallelize=True` does."""
    base = lm.model.get_base_model()
    layers = list(lm.layers.decoder_layers)
    upper = set()
    if two:
        from accelerate.hooks import AlignDevicesHook, add_hook_to_module

        class Hook(AlignDevicesHook):
            def init_hook(self, module):
                return module

        in_layers = {id(module) for layer in layers for module in layer.modules()}
        embedding = {id(module) for module in base.get_input_embeddings().modules()}
        # What has weights and stands in no layer: the final norm, the head.
        rest = [m for m in base.modules() if list(m.parameters(False)) and id(m) not in in_layers | embedding]
        above = [*layers[len(layers) // 2 :], *rest]
        upper = {id(module) for top in above for module in top.modules()}
        for module in (*layers, *rest, base.get_input_embeddings()):
            device = torch.device(NAME, int(id(module) in upper))
            add_hook_to_module(module, Hook(device, skip_keys=["cache", "past_key_values"]))
        add_hook_to_module(
            base, Hook(torch.device(NAME, 0), io_same_device=True, skip_keys=["cache", "past_key_values"])
        )
    for module in lm.model.modules():
        place = int(id(module) in upper)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(Elsewhere(parameter.data, place), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer, place)
    lm._device = torch.device(NAME, 0)


def compare(architecture, two):
    """Both passes on the pretend device, and the shared one on the CPU: what differs, launches and waits a forward."""
    from lm_eval_lora_drop.engine.generation import WholeAnswers
    from lm_eval_lora_drop.engine.plain import plain_runner
    from lm_eval_lora_drop.engine.session import Counters
    from lm_eval_lora_drop.engine.shared import shared_runner
    from lm_eval_lora_drop.sweep.backend import Work
    from lm_eval_lora_drop.variant import Variant
    from testing.tiny import make_adapter, make_base
    from tests.engine import test_shared as shared_tests
    from tests.engine.test_variants import answers

    folder = Path(tempfile.mkdtemp())
    base = make_base(folder / "base", architecture)
    lm = shared_tests.load(base, make_adapter(base, folder / "adapter"))
    variants = tuple(Variant.parse(text, 4) for text in ("0-3", "0-1", "1-3x0.5.mlp"))
    texts = [[(text,)] for text in shared_tests.PROMPTS[:2]]
    kinds = {
        "generation": shared_tests.generating(max_gen_toks=4)[:2],
        "few-shot": shared_tests.generating(shared_tests.EXAMPLES, max_gen_toks=2)[:2],
        "loglikelihood": shared_tests.choosing()[:2],
        "rolling": shared_tests.documents("loglikelihood_rolling", texts),
    }
    work = {kind: [Work(document, variants) for document in documents] for kind, documents in kinds.items()}
    on_cpu = {kind: answers(shared_runner(lm, lm.layers), items) for kind, items in work.items()}
    spread(lm, two)
    forwards = 0

    def count(*_):
        nonlocal forwards
        forwards += 1

    lm.model.get_base_model().register_forward_pre_hook(count)
    compared = WholeAnswers._difference

    def uncounted(*args):
        # A handful of the plain model's forwards in a whole sweep, which would be a tenth of these few.
        nonlocal forwards
        before = {**COUNTS}, forwards
        try:
            return compared(*args)
        finally:
            COUNTS.update(before[0])
            forwards = before[1]

    WholeAnswers._difference = uncounted
    found = {}
    for kind, items in work.items():
        result = found[kind] = {}
        for name in ("shared", "plain"):
            counters = Counters()
            runner = plain_runner(lm, lm.layers) if name == "plain" else shared_runner(lm, lm.layers, None, counters)
            COUNTS.update(launches=0, waits=0)
            forwards = 0
            with Device():
                # Of the plain pass the launches of its forwards are wanted, which are the same for any document.
                given = answers(runner, items if name == "shared" else [Work(items[0].document, variants[:1])])
            result[name] = {key: value / forwards for key, value in COUNTS.items()} | {"failed": counters.fell_back}
            with contextlib.suppress(AssertionError):
                expected = {key: on_cpu[kind][key] for key in given}
                if kind in ("generation", "few-shot"):
                    assert given == expected
                else:
                    shared_tests.same_numbers(expected, given)
                result[name]["equal"] = True
    WholeAnswers._difference = compared
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", nargs="+")
    parser.add_argument("--two", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    install()
    for one in arguments.architectures:
        print(json.dumps({one: compare(one, two=False)}), flush=True)
    for one in arguments.two:
        print(json.dumps({f"{one}, two": compare(one, two=True)}), flush=True)
