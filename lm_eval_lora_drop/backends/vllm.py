"""`--model vllm-lora-drop`: lm-eval's VLLM with the LoRA of some decoder layers dropped.

Every variant is an adapter of its own (vllm_lora.py), so a sweep needs no pass of ours: the rows of all variants are
submitted together, and vLLM's scheduler and its kernels for many adapters do the rest.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.vllm_causallms import VLLM
from lm_eval.utils import warning_once
from vllm import EngineArgs
from vllm.config import ModelConfig
from vllm.lora.request import LoRARequest
from vllm.model_executor.models import supports_lora
from vllm.platforms import current_platform

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.backends import vllm_lora
from lm_eval_lora_drop.backends.base import LoraDropBase
from lm_eval_lora_drop.backends.checks import check_against_tasks, sweep_folder
from lm_eval_lora_drop.backends.distributed import TorchPeers
from lm_eval_lora_drop.backends.engine_calls import SharedEngineCall
from lm_eval_lora_drop.backends.evaluated import variants_beside
from lm_eval_lora_drop.backends.identity.loaded import configuration, tokenizer_digest
from lm_eval_lora_drop.backends.preflight import check_adapter, shape_of
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.harness.documents import Answer, Document
from lm_eval_lora_drop.harness.evaluation import log_with_the_harness
from lm_eval_lora_drop.options import LoraDropArgs, parse_model_args
from lm_eval_lora_drop.record.fingerprint import digest, short
from lm_eval_lora_drop.show.listeners import default_listeners
from lm_eval_lora_drop.sweep.backend import Pass, Work
from lm_eval_lora_drop.sweep.candidates import candidates_of
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)

_OF_THE_MODEL = set(inspect.signature(ModelConfig).parameters) & set(inspect.signature(EngineArgs).parameters)

_SAMPLES = (
    "The task sets neither do_sample nor temperature, so the harness's vllm samples at temperature 1, in the sweep "
    "too, where hf decodes greedily. For greedy decoding give --gen_kwargs do_sample=False."
)

ROUNDS_PER_BATCH = 4
"""How many times the rows the engine runs at once are submitted together, and then written into the journal: fewer, and
the engine often waits for its last rows; more, and a killed run loses more."""

CPU_STEP = 512
"""Tokens per step on a CPU, where vLLM's LoRA kernels copy the adapter's weights once for each token: these copies stay
in the cache. With vLLM's own 4,096 a sweep took 1.7 times longer (SmolLM2, two cores)."""


class VllmLoraDropLM(LoraDropBase, VLLM):
    """VLLM that keeps the LoRA of the bottom K decoder layers and drops the rest (paper: arXiv 2503.23360).

    Takes the model_args of `vllm` and those of `LoraDropArgs`; the adapter is `peft` or, as with `vllm`,
    `lora_local_path`. `max_lora_rank` and `max_loras` are set by the adapter and the number of candidates unless given.

    Raises:
        ArgumentError: a model_arg that cannot be used as written.
        AdapterError: no adapter, one that does not fit the base model, or one that vLLM cannot take.
    """

    batch_size: int | str
    data_parallel_size: int

    def __init__(
        self, pretrained: str, peft: str | None = None, lora_local_path: str | None = None, **model_args: Any
    ) -> None:
        log_with_the_harness()
        known = {*inspect.signature(VLLM.__init__).parameters, *inspect.signature(EngineArgs).parameters}
        args, rest = parse_model_args(model_args, known)
        _refuse_what_needs_hf(args)
        check_against_tasks(args, model_args)
        if peft and lora_local_path and peft != lora_local_path:
            raise ArgumentError(
                f"peft and lora_local_path both name the adapter, got {peft} and {lora_local_path}. Give one of them."
            )
        self._files, model = check_adapter(pretrained, peft or lora_local_path, args, rest)
        rank = vllm_lora.choose_rank(self._files, rest.get("max_lora_rank"))
        vllm_lora.check_supported(self._files, rank)
        config = _model_config(pretrained, rest)
        slot = vllm_lora.slot_size(model, rank, config.dtype.itemsize)
        self._layers = AdapterLayers.of(model)
        vllm_lora.check_outside(self._files, self._layers, _embedding_modules(pretrained, config))
        self._parts = self._parts_of_files(pretrained, config, rest)
        lora = {}
        if wanted := self._adapters_wanted(args):
            memory = int(current_platform.get_device_total_memory())
            at_once = rest.get("max_loras") or vllm_lora.adapters_at_once(wanted, slot, memory)
            lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": at_once}
            lora |= vllm_lora.target_modules(self._files)
            # vLLM wants steps of at least max_num_seqs tokens, and of a whole prompt where prompts may not be split.
            if current_platform.is_cpu() and not {"max_num_batched_tokens", "enable_chunked_prefill"} & rest.keys():
                lora["max_num_batched_tokens"] = max(CPU_STEP, int(rest.get("max_num_seqs") or 0))
        self._shared_call: SharedEngineCall | None = None
        super().__init__(pretrained, **{**rest, **lora})
        self._start(args, shape_of(self._layers.model, self._files), default_listeners(0, args.sweep_log))
        self._shelf = vllm_lora.AdapterShelf(self._files, self._layers, sweep_folder(args) / "adapters")

    # What LoraDropBase asks of a backend.

    def count_parameters(self, kept: Variant) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""
        return self._layers.count_parameters(kept)

    def peers(self) -> TorchPeers:
        """One process: vLLM distributes by itself."""
        return TorchPeers(0, 1)

    def prepare(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> Pass:  # noqa: ARG002
        """All variants of a batch of documents together, whatever the documents and candidates are."""

        def run(work: Sequence[Work]) -> Iterator[list[Answer]]:
            for chunk, variants in _batches(work, self._rows_per_batch()):
                yield self._answer_variants(chunk, variants)

        return Pass(run, "vllm")

    def _answer(self, request_type: str, requests: list[Instance], kept: Variant, disable_tqdm: bool) -> list[Any]:
        self.lora_request = self._shelf.request(kept)
        try:
            return self._harness_answers(request_type, requests, disable_tqdm)
        finally:
            self.lora_request = None

    # Many variants at once.

    def _answer_variants(self, documents: Sequence[Document], variants: Sequence[Variant]) -> list[Answer]:
        adapters = [self._shelf.request(variant) for variant in variants]
        requests = [request for document in documents for request in document.requests]
        answers = []
        with self._all_at_once(SharedEngineCall(lambda *call: self._ask_all(adapters, *call))) as shared_call:
            for index, variant in enumerate(variants):
                shared_call.turn(index)
                responses = iter(self._harness_answers(requests[0].request_type, requests, disable_tqdm=True))
                answers += [
                    Answer(variant, document, tuple(next(responses) for _ in document.requests))
                    for document in documents
                ]
        return answers

    @contextmanager
    def _all_at_once(self, shared_call: SharedEngineCall) -> Iterator[SharedEngineCall]:
        """Engine calls go to `shared_call`, in one batch, and past the harness's answer cache: it knows no variants."""
        before = self.cache_hook, self.batch_size
        self.cache_hook, self.batch_size, self._shared_call = CacheHook(None), sys.maxsize, shared_call
        try:
            yield shared_call
        finally:
            self.cache_hook, self.batch_size = before
            self._shared_call = None

    @staticmethod
    def modify_gen_kwargs(
        gen_kwargs: dict[str, Any], eos: str | list[str] | None = None, default_max_gen_toks: int = 256
    ) -> tuple[dict[str, Any], list[str], int]:
        """As `VLLM`; warns where it samples and `hf` does not, as a task sets neither do_sample nor temperature."""
        found: tuple[dict[str, Any], list[str], int] = VLLM.modify_gen_kwargs(gen_kwargs, eos, default_max_gen_toks)
        if "temperature" not in found[0]:
            warning_once(log, _SAMPLES)
        return found

    def _model_generate(
        self, requests: list[list[int]], generate: bool = False, sampling_params: Any = None
    ) -> list[Any]:
        """The engine's outputs to prompts; the one method of VLLM that asks the engine."""
        if self._shared_call is not None:
            if generate and isinstance(sampling_params, list):
                _seed_rows(requests, sampling_params)
            return self._shared_call(requests, generate, sampling_params)
        outputs: list[Any] = super()._model_generate(requests, generate, sampling_params)
        return outputs

    def _ask_all(self, adapters: Sequence[LoRARequest | None], *call: Any) -> list[list[Any]]:
        """The outputs to all prompts under each adapter, in as few calls of the engine as give the right answers."""
        calls: list[Sequence[int]] = [range(len(adapters))]
        if current_platform.is_cpu():
            # vLLM's CPU kernels read "no adapter" (-1) as the last slot's when other rows of the step have adapters
            # (vllm/lora/ops/torch_ops/lora_ops.py), so the base model's rows have a call of their own.
            calls = [[i for i, a in enumerate(adapters) if (a is None) is base] for base in (False, True)]
        outputs: dict[int, list[Any]] = {}
        for indices in filter(None, calls):
            outputs.update(zip(indices, self._generate_under([adapters[i] for i in indices], *call), strict=True))
        return [outputs[index] for index in range(len(adapters))]

    def _generate_under(
        self, adapters: Sequence[LoRARequest | None], prompts: list[list[int]], generate: bool, sampling_params: Any
    ) -> list[list[Any]]:
        """One call of the engine: the outputs to all prompts under each adapter."""
        # VLLM deals prompts out to its replicas one by one and gives each the same list of adapters. Padded to a
        # multiple of their number, the prompts under one adapter fall to every replica at the same places.
        each = -(-len(prompts) // self.data_parallel_size)
        missing = each * self.data_parallel_size - len(prompts)
        rows = [*prompts, *prompts[-1:] * missing]
        if isinstance(sampling_params, list):
            sampling_params = [*sampling_params, *sampling_params[-1:] * missing] * len(adapters)
        self.lora_request = [adapter for adapter in adapters for _ in range(each)]
        try:
            outputs = super()._model_generate(rows * len(adapters), generate, sampling_params)
        finally:
            self.lora_request = None
        starts = range(0, len(outputs), len(rows))
        return [outputs[start : start + len(prompts)] for start in starts]

    def _harness_answers(self, request_type: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        return getattr(super(LoraDropBase, self), request_type)(requests, disable_tqdm=disable_tqdm)

    def _rows_per_batch(self) -> int:
        if self.args.sweep_batch_size is not None:
            return self.args.sweep_batch_size
        if self.data_parallel_size > 1:
            # VLLM starts its replicas anew at every call.
            return sys.maxsize
        return ROUNDS_PER_BATCH * int(self.model.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    # What is known before the engine starts.

    def _adapters_wanted(self, args: LoraDropArgs) -> int:
        """How many adapters may be asked for: those with LoRA of the candidates, or of the one that was given, and of
        what the test split is answered with beside it."""
        shape = shape_of(self._layers.model, self._files)
        given = args.spec.resolve(shape.num_layers)
        variants = {given} if given else {*candidates_of(args, shape).variants}
        for kept in tuple(variants):
            variants.update(variants_beside(kept, args.evaluate or (), shape))
        wanted = sum(self._layers.count_parameters(kept)[0] > 0 for kept in variants)
        # A task without validation documents takes the default boundary, candidate or not.
        return max(wanted, 1) if given is None else wanted

    def _parts_of_model(self) -> dict[str, Any]:
        return {**self._parts, "loaded": {**self._parts["loaded"], "tokenizer": tokenizer_digest(self.tokenizer)}}

    def _parts_of_files(self, pretrained: str, config: ModelConfig, rest: Mapping[str, Any]) -> dict[str, Any]:
        commit = getattr(self._layers.model.get_base_model().config, "_commit_hash", None)
        return {
            "adapter": {
                "path": self._files.source,
                "fingerprint": self._files.fingerprint(),
                "base_model": self._files.config.get("base_model_name_or_path"),
                "r": self._files.config.get("r"),
                "lora_alpha": self._files.config.get("lora_alpha"),
                "parameters": sum(self._layers.count_parameters(Variant.base(self._layers.num_layers))),
            },
            "base": {
                "name": pretrained,
                "revision": rest.get("revision") or "main",
                "fingerprint": adapter_files.base_fingerprint(pretrained, commit),
            },
            "dtype": str(config.dtype).removeprefix("torch."),
            "backend": "vllm",
            "model_args": rest,
            # Its weights are in other processes: base_fingerprint has read their files.
            "loaded": {
                "config": configuration(config.hf_config),
                "generation_config": config.try_get_generation_config(),
            },
        }


def _seed_rows(prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> None:
    """Give each row that samples random numbers of its own, by its prompt and the number of its repeat: the same when a
    sweep is begun again, and the same for all variants."""
    repeats: Counter[tuple[int, ...]] = Counter()
    for prompt, row in zip(map(tuple, prompts), parameters, strict=True):
        if row.temperature and row.seed is None:
            row.seed = int(short(digest(prompt, repeats[prompt]), 15), 16)
        repeats[prompt] += 1


def _refuse_what_needs_hf(args: LoraDropArgs) -> None:
    if args.sweep_engine != "auto":
        raise ArgumentError(
            f"sweep_engine={args.sweep_engine} names a pass of hf-lora-drop; vllm-lora-drop has one of its own. Leave "
            "it out, or use --model hf-lora-drop."
        )
    if args.merge:
        raise ArgumentError(
            "merge=true is for --model hf-lora-drop: vLLM cannot change its weights. Leave it out; to evaluate merged "
            "weights, write them with lora-drop export --merge and use --model vllm."
        )
    for given, reads in (
        ("boundary=probe", args.spec.kind == "probe"),
        ("sweep_candidates=scores", "scores" in args.sweep_candidates.names),
    ):
        if reads:
            raise ArgumentError(
                f"{given} reads the hidden states of every layer, and vLLM gives none. Use --model hf-lora-drop for "
                "it, and here the boundary or layers that it finds."
            )


def _model_config(pretrained: str, rest: Mapping[str, Any]) -> ModelConfig:
    """vLLM's own view of the model, from its configuration files; also vLLM's own refusal of it.

    Raises:
        ArgumentError: vLLM refuses.
    """
    given = {name: value for name, value in rest.items() if name in _OF_THE_MODEL and value is not None}
    if (length := rest.get("max_model_len") or rest.get("max_length")) is not None:
        given["max_model_len"] = int(length)
    try:
        return EngineArgs(model=pretrained, **given).create_model_config()
    except ValueError as error:
        # vLLM checks with pydantic, which puts more into its text than a reader wants.
        found = [item["msg"].removeprefix("Value error, ") for item in getattr(error, "errors", list)()]
        raise ArgumentError(
            f"vLLM refuses pretrained={pretrained} with these model_args: {' '.join(found) or error} Change them, or "
            "use --model hf-lora-drop."
        ) from error


def _embedding_modules(pretrained: str, config: ModelConfig) -> Mapping[str, str]:
    """The embedding modules that may have LoRA in vLLM's model of this architecture.

    Raises:
        AdapterError: it takes no LoRA at all.
    """
    model, _ = config.registry.resolve_model_cls(config.architectures, config)
    if not supports_lora(model):
        raise AdapterError(
            f"vLLM takes no LoRA for {', '.join(config.architectures)} (pretrained={pretrained}). {vllm_lora.WAY_OUT}"
        )
    return getattr(model, "embedding_modules", None) or {}


def _batches(work: Iterable[Work], rows: int) -> Iterator[tuple[list[Document], tuple[Variant, ...]]]:
    """Documents that are to be answered under the same variants, some `rows` (request x variant) at a time."""
    alike: dict[tuple[Variant, ...], list[Document]] = {}
    for item in work:
        alike.setdefault(item.variants, []).append(item.document)
    for variants, documents in alike.items():
        batch: list[Document] = []
        size = 0
        for document in documents:
            more = len(document.requests) * len(variants)
            if batch and size + more > rows:
                yield batch, variants
                batch, size = [], 0
            batch.append(document)
            size += more
        yield batch, variants
