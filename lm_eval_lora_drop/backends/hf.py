"""`--model hf-lora-drop`: lm-eval's HFLM (Transformers and PEFT) with the LoRA of some decoder layers dropped."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.adapter.places import in_evaluation_mode
from lm_eval_lora_drop.backends.base import LoraDropBase
from lm_eval_lora_drop.backends.checks import check_against_tasks
from lm_eval_lora_drop.backends.distributed import TorchPeers
from lm_eval_lora_drop.backends.identity.loaded import loaded_model
from lm_eval_lora_drop.backends.preflight import check_adapters, shape_of
from lm_eval_lora_drop.engine.check import CheckResult, check_shared
from lm_eval_lora_drop.engine.evaluated import answer_requests, why_left_to_harness, why_refused
from lm_eval_lora_drop.engine.memory import RowSize, free_memory, peak_memory, rows_that_fit
from lm_eval_lora_drop.engine.plain import batches_of, plain_runner
from lm_eval_lora_drop.engine.probe.run import ProbeResult, probe_boundary
from lm_eval_lora_drop.engine.probe.scores import layer_scores
from lm_eval_lora_drop.engine.requests import end_each_alone, longest, needs_own_batch, shareable
from lm_eval_lora_drop.engine.session import Counters
from lm_eval_lora_drop.engine.shared import shared_runner, why_not_shared
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.harness.evaluation import log_with_the_harness
from lm_eval_lora_drop.options import check_names, parse_model_args
from lm_eval_lora_drop.record.fingerprint import digest
from lm_eval_lora_drop.show.listeners import default_listeners
from lm_eval_lora_drop.sweep.backend import Pass, Runner
from lm_eval_lora_drop.sweep.run import in_step
from lm_eval_lora_drop.text import logger
from lm_eval_lora_drop.variant import Variant

log = logger(__name__)


HF_ARGUMENTS = frozenset(inspect.signature(HFLM.__init__).parameters)
"""The model_args of `--model hf`."""


class LoraDropLM(LoraDropBase, HFLM):
    """HFLM that keeps the LoRA of the bottom K decoder layers and drops the rest (paper: arXiv 2503.23360).

    Takes the model_args of `hf` and those of `LoraDropArgs`. `pretrained` may also be a loaded `PeftModel`; `peft` is
    left out then.

    Raises:
        ArgumentError: a model_arg that cannot be used as written.
        AdapterError: no adapter, not a LoRA adapter, or one that does not fit the base model.
    """

    def __init__(
        self,
        pretrained: str | transformers.PreTrainedModel | PeftModel | None = None,
        peft: str | None = None,
        **model_args: Any,
    ) -> None:
        log_with_the_harness()
        # With every product of LLM.int8 it warns that it casts its input.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        args, rest = parse_model_args(model_args, known=HF_ARGUMENTS)
        check_against_tasks(args, model_args)
        self._adapter_files: adapter_files.AdapterFiles | None = None
        several: dict[str, adapter_files.AdapterFiles] = {}
        if pretrained is None or isinstance(pretrained, str):
            check_names({"pretrained": pretrained, "peft": peft})
            assert pretrained is not None
            found = check_adapters(pretrained, peft, args, rest)
            self._adapter_files = next(iter(found.values()))
            several = found if len(found) > 1 else {}
            for files in found.values():
                log.info("adapter %s: LoRA r=%s", files.source, files.config.get("r"))
        elif peft is not None or not isinstance(pretrained, PeftModel):
            raise AdapterError(
                f"pretrained must be a path or Hub id together with peft=<adapter>, or a PeftModel without peft, got a "
                f"{type(pretrained).__name__} and peft={peft}."
            )
        self._model_args = rest
        first = self._adapter_files.source if self._adapter_files else peft
        # A model that was handed over is the user's: HFLM changes its mode and ties its weights.
        self._lent_model = pretrained if isinstance(pretrained, PeftModel) else None
        with self._lent():
            self._load_all(pretrained, first, several, rest)
            self._start(args, shape_of(self.model, self._adapter_files), default_listeners(self.rank, args.sweep_log))
            if self._lent_model is not None:
                given = args.spec.resolve(self.shape.num_layers)
                if given is None or not given.is_full:
                    health.check_model_divisible(self.model)
                if args.merge:
                    self.layers.check_mergeable()
        if self.layers.followers:
            log.info(
                "the adapter trains the embedding, and lm_head is tied to it: lm_eval ties them after loading, so the "
                "trained embedding is the head too, as with --model hf; plain PEFT keeps the base model's head"
            )

    def _lent(self) -> AbstractContextManager[None]:
        """Within the context a model that was handed over is as HFLM makes it; afterwards it is the user's again."""
        return nullcontext() if self._lent_model is None else in_evaluation_mode(self._lent_model)

    def _load_all(
        self,
        pretrained: str | transformers.PreTrainedModel | PeftModel,
        first: str | None,
        several: Mapping[str, adapter_files.AdapterFiles],
        rest: Mapping[str, Any],
    ) -> None:
        try:
            super().__init__(pretrained=pretrained, peft=first, **rest)
        except TypeError as error:
            # Transformers hands what it does not know to the model's class, which is made before weights are read.
            name = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if name is None or name[1] not in rest:
                raise
            raise ArgumentError(
                f"model_args has no argument {name[1]!r} (got {name[1]}={rest[name[1]]}): neither hf-lora-drop, nor "
                "hf, nor this model's class knows it. Leave it out."
            ) from error
        self._several = self._load(several)
        if hasattr(self, "accelerator"):
            # HFLM sets no rank where there is no GPU, and the rank within one machine where there are several.
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
        self.layers = AdapterLayers.of(self.model)
        self._files_digests = self._digest_files()

    def _load(self, several: Mapping[str, adapter_files.AdapterFiles]) -> dict[str, adapter_files.AdapterFiles]:
        """Put all adapters onto the model under their own names, the first of them active."""
        for name, files in several.items():
            self.model.load_adapter(str(files.folder), adapter_name=name, torch_device=str(self.device))
        if several:
            self.model.set_adapter(next(iter(several)))
            self.model.delete_adapter("default")
            self.model.requires_grad_(requires_grad=False)
            self.model.eval()
        return dict(several)

    def swap_adapter(self, peft: str) -> None:
        """Put another LoRA adapter on the base model that is loaded; decisions taken so far are forgotten.

        Raises:
            AdapterError: no LoRA adapter of this base model, or the present one cannot be taken out without a trace
                (it trained whole modules or biases).
        """
        if self._adapter_files is None or self._several:
            raise AdapterError("swap_adapter needs a model that was loaded with one peft=<adapter>, and no PeftModel.")
        files = adapter_files.open_adapter(peft)
        for one in (self._adapter_files, files):
            if trained := adapter_files.trained_besides_lora(one):
                raise AdapterError(
                    f"peft={one.source} changes the base model besides its LoRA ({trained}), so adapters cannot be "
                    "swapped. Load the base model anew."
                )
        # On another base model PEFT would fail with its own words, after the old adapter is gone.
        adapter_files.check_against(files, self.model.get_base_model(), str(self.pretrained))
        base = self.model.unload()
        self._model = PeftModel.from_pretrained(base, str(files.folder)).to(self.device).eval()
        self._adapter_files = files
        self.layers = AdapterLayers.of(self.model)
        self._files_digests = self._digest_files()
        self.shape = shape_of(self.model, files)
        self.use(self.args)

    def _by_task(self, request_type: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        with self._lent():
            return super()._by_task(request_type, requests, disable_tqdm)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """As `LoraDropBase`."""
        with self._lent():
            return super().gather_object(obj, dst)

    def get_model_info(self) -> dict[str, Any]:
        """As `LoraDropBase`."""
        with self._lent():
            return super().get_model_info()

    # What LoraDropBase asks of a backend.

    def count_parameters(self, kept: Variant) -> tuple[int, int]:
        """Adapter parameters that `kept` keeps and drops."""
        return self.layers.count_parameters(kept)

    def prepare(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> Pass:
        """The shared pass where it can answer these documents and is verified, else the plain pass.

        Raises:
            ArgumentError: the shared pass was asked for by name and cannot answer them.
        """
        engine, plain = self.args.sweep_engine, plain_runner(self, self.layers)
        if engine == "plain":
            return Pass(plain, "plain")
        reason = why_not_shared(self, self.layers, documents, candidates)
        fit = shareable(self, documents) if reason is None else []
        found: CheckResult | None = None
        if reason is None:
            shared = functools.partial(shared_runner, self, self.layers)
            # What differs on one process differs for all: they must go on in step.
            found, reason = self._check(shared, plain, fit, candidates)
        for warning in found.warnings if found is not None else ():
            log.warning(warning)
        if reason is not None and engine == "shared":
            raise ArgumentError(
                f"sweep_engine=shared cannot answer these documents: {reason}. Use sweep_engine=auto, which falls back "
                "to the plain pass."
            )
        check, answers = (found.to_json(), found.answers) if found else (None, ())
        if reason is not None:
            log.warning("Falling back to the plain pass (slower): %s", reason)
            return Pass(plain, "plain", check, answers)
        log.info("Shared pass verified against the plain pass %s", found)
        if len(fit) < len(documents):
            log.info(
                "%d of %d documents can grow past a length at which the model changes its positions: these get the "
                "plain pass at batch size 1",
                len(documents) - len(fit),
                len(documents),
            )
        counters = Counters()
        runner = shared_runner(self, self.layers, self.args.sweep_batch_size, counters)
        return Pass(runner, "shared", (check or {}) | {"compared_to_the_end": counters.compared}, answers)

    def _why_not_together(self, requests: Sequence[Instance]) -> str | None:
        """None where the decoder gives HFLM's texts (`engine.evaluated`); no log-likelihood is to the last bit."""
        if requests[0].request_type != "generate_until" or self.args.merge or self.args.sweep_engine == "plain":
            return super()._why_not_together(requests)
        return why_left_to_harness(self, requests)

    def _prepare_evaluated(self, documents: Sequence[Document], variants: Sequence[Variant]) -> Pass:
        """As a run of each variant alone: merged where that is asked for."""
        if self.args.merge:
            return Pass(plain_runner(self, self.layers, self._kept), "plain")
        return self.prepare(documents, variants)

    def memory(self, documents: Sequence[Document], candidates: Sequence[Variant]) -> str:
        """What is in use now, and the keys, values and logits of the rows that would be decoded together.

        An upper bound, as `engine.memory.rows_that_fit` sees it: rows that share states need less.
        """
        now = f"{peak_memory(self.device) / 1e9:.1f} GB in use with the model loaded"
        if self.args.sweep_engine == "plain" or why_not_shared(self, self.layers, documents, candidates):
            return f"{now}, and one candidate's batches of {self.batch_size}"
        tokens = max(longest(self, request) for document in documents for request in document.requests)
        size = RowSize.of(self)
        rows = min(
            self.args.sweep_batch_size or rows_that_fit(self, size, tokens),
            len(candidates) * sum(len(document.requests) for document in documents),
        )
        more = size.bytes_of(rows, tokens) / 1e9
        return (
            f"{now}, up to {more:.1f} GB for {rows} rows of up to {tokens} tokens at a time, "
            f"{free_memory(self.device) / 1e9:.1f} GB free"
        )

    def _check(
        self,
        shared: Callable[..., Runner],
        plain: Runner,
        documents: Sequence[Document],
        candidates: Sequence[Variant],
    ) -> tuple[CheckResult, str | None]:
        """The check before trust on this process, and why the shared pass is not to be trusted on one of them."""
        results: list[CheckResult] = []

        def check() -> str | None:
            results.append(check_shared(self, self.layers, shared, plain, documents, candidates))
            return None if results[0].passed else str(results[0])

        reasons = [reason for reason in in_step(self.peers(), check) if reason is not None]
        return results[0], reasons[0] if reasons else None

    def peers(self) -> TorchPeers:
        """The processes of an `accelerate launch`."""
        return TorchPeers(self.rank, self.world_size)

    def probe(self, pairs: Sequence[tuple[str, str]]) -> ProbeResult:
        """The probe of the full adapter; every process reads all documents, so that all find the same layer."""
        return probe_boundary(self, self.layers, pairs, seed=self.args.sweep_seed, progress=self.rank == 0)

    def layer_scores(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
        """By the scores of `engine.probe.scores`; every process reads all documents, so that all find the same."""
        return {
            name: scores.tolist()
            for name, scores in layer_scores(self, self.layers, pairs, self._adapter_files).items()
        }

    def harness_answers(self, request_type: str, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """HFLM's own answers under whatever layers are kept now; at batch size 1 where a request `needs_own_batch`.

        With several processes HFLM meets the others in every rolling call, and to find an automatic batch size; there
        requests are not parted.

        Raises:
            ArgumentError: HFLM refuses to score one of the requests.
        """
        by_itself = needs_own_batch(self, requests)
        if any(by_itself):
            # Dynamic NTK keeps the frequencies of the longest text so far until it meets a short one.
            with torch.inference_mode():
                self.model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=self.device))
        in_step = request_type == "loglikelihood_rolling" or not isinstance(self.batch_size, int)
        if not any(by_itself) or self.batch_size == 1 or (in_step and self._world_size > 1):
            return self._ask(request_type, requests, disable_tqdm)
        parts = [[one for one, it in zip(requests, by_itself, strict=True) if it is wanted] for wanted in (True, False)]
        with batches_of(self, 1):
            first = iter(self._ask(request_type, parts[0], disable_tqdm))
        rest = iter(self._ask(request_type, parts[1], disable_tqdm) if parts[1] else [])
        return [next(first if is_alone else rest) for is_alone in by_itself]

    def _ask(self, request_type: str, requests: list[Instance], disable_tqdm: bool) -> list[Any]:
        try:
            answers: list[Any] = getattr(super(LoraDropBase, self), request_type)(requests, disable_tqdm=disable_tqdm)
            return answers
        except (AssertionError, IndexError, ValueError, TypeError, AttributeError) as error:
            if (reason := why_refused(self, request_type, requests, error)) is None:
                raise
            raise ArgumentError(reason) from error

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **kwargs: Any) -> torch.Tensor:
        tokens: torch.Tensor = super()._model_generate(context, max_length, stop, **kwargs)
        return end_each_alone(self, tokens, context.shape[1], stop)

    def _answer(self, request_type: str, requests: list[Instance], kept: Variant, disable_tqdm: bool) -> list[Any]:
        with self._kept(kept):
            if request_type == "generate_until":
                return answer_requests(self, requests, disable_tqdm)
            return self.harness_answers(request_type, requests, disable_tqdm)

    @contextmanager
    def _kept(self, kept: Variant) -> Iterator[None]:
        """Within the context the model has the LoRA of `kept` only, merged where that is asked for."""
        with self.layers.merge(kept) if self.args.merge else self.layers.keep(kept) as survival:
            if survival is not None and (warning := survival.check("merge=force", self.args.merge == "force")):
                log.warning(warning)
            yield

    def _digest_files(self) -> tuple[str, str] | None:
        """Of adapter and base model as they lie on the disk or the Hub; None for a model that came in memory."""
        if self._adapter_files is None:
            return None
        # Names count: variants speak of them.
        several = [[name, each.fingerprint()] for name, each in self._several.items()]
        commit = getattr(self.config, "_commit_hash", None)
        return (
            digest(several) if several else self._adapter_files.fingerprint(),
            adapter_files.base_fingerprint(self.pretrained, commit),
        )

    def _parts_of_model(self) -> dict[str, Any]:
        self.layers.check()  # a user may have merged it, or switched it off, since it was loaded
        config = self.model.peft_config[self.model.active_adapters[0]]
        files, base = self._adapter_files, self.model.get_base_model()
        with self._lent():  # as it answers: a user's model in training mode is evaluated without dropout
            loaded = loaded_model(self.model, self.tokenizer)
        weights = loaded["weights"]
        adapter, of_base = self._files_digests or (digest(weights["adapter"], loaded["adapters"]), weights["base"])
        several = {
            name: {"path": each.source, "fingerprint": each.fingerprint()} for name, each in self._several.items()
        }
        return {
            "backend": "hf",
            "adapter": {
                "path": "+".join(each.source for each in self._several.values()) or (files.source if files else None),
                "fingerprint": adapter,
                "base_model": config.base_model_name_or_path,
                "r": config.r,
                "lora_alpha": config.lora_alpha,
                "parameters": sum(self.layers.count_parameters(Variant.base(self.layers.num_layers))),
                **({"several": several} if several else {}),
            },
            "base": {
                "name": self.pretrained if files else base.name_or_path,
                "revision": self.revision,
                "fingerprint": of_base,
            },
            "dtype": str(base.dtype).removeprefix("torch."),
            "model_args": self._model_args,
            "loaded": loaded,
        }


def without_adapter(pretrained: str, **how: Any) -> HFLM:
    """The base model alone, as the harness loads it."""
    return HFLM(pretrained, **how)
