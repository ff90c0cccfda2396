"""A model type: lm-eval's HFLM on the CPU, one candidate at a time, without the engine of hf-lora-drop."""

import inspect

from lm_eval.models.huggingface import HFLM

from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.backends.base import LoraDropBase
from lm_eval_lora_drop.backends.distributed import TorchPeers
from lm_eval_lora_drop.backends.preflight import shape_of
from lm_eval_lora_drop.harness.documents import Answer
from lm_eval_lora_drop.harness.hooks.models import arm
from lm_eval_lora_drop.options import parse_model_args
from lm_eval_lora_drop.show.listeners import default_listeners
from lm_eval_lora_drop.sweep.backend import Pass
from lm_eval_lora_drop.variant import Variant

arm()


class ToyLM(LoraDropBase, HFLM):
    def __init__(self, pretrained: str, peft: str, **model_args):
        args, rest = parse_model_args(model_args, known=frozenset(inspect.signature(HFLM.__init__).parameters))
        super().__init__(pretrained=pretrained, peft=peft, **rest)
        self.layers, self.paths = AdapterLayers.of(self.model), (pretrained, peft)
        self._start(args, shape_of(self.model), default_listeners(0, args.sweep_log))

    def count_parameters(self, kept):
        return self.layers.count_parameters(kept)

    def peers(self):
        return TorchPeers(0, 1)

    def prepare(self, documents, candidates):
        def run(work):
            for item in work:
                requests = list(item.document.requests)
                for kept in item.variants:
                    responses = self._answer(requests[0].request_type, requests, kept, disable_tqdm=True)
                    yield [Answer(kept, item.document, tuple(responses))]

        return Pass(run, "toy")

    def _answer(self, request_type, requests, kept, disable_tqdm):
        with self.layers.keep(kept):
            return getattr(super(LoraDropBase, self), request_type)(requests, disable_tqdm=disable_tqdm)

    def _parts_of_model(self):
        base, adapter = self.paths
        parameters = sum(self.count_parameters(Variant.base(self.layers.num_layers)))
        return {
            "backend": "toy",
            "adapter": {"path": adapter, "fingerprint": adapter, "base_model": base, "r": 4, "lora_alpha": 8}
            | {"parameters": parameters},
            "base": {"name": base, "revision": "main", "fingerprint": base},
            "dtype": "float32",
            "model_args": {},
            "loaded": {},
        }
