"""One case of `matrix.py`: what the product does, and whether its answers are those of the harness.

The oracles are HFLM with PEFT's adapter as it is (the full adapter), HFLM within PEFT's own `disable_adapter` (the
base model), and for what lies between the plain pass, one boundary after another.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from benchmarks.matrix_cases import LARGEST, LAYERS, PROMPTS, Case, make_config, usual
from benchmarks.matrix_identity import run_identity
from benchmarks.quantised import quantisation
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.backends.hf import LoraDropLM
from lm_eval_lora_drop.engine.check import divergence
from lm_eval_lora_drop.engine.evaluated import (
    CHECKED,
    decode_requests,
    why_left_to_harness,
    why_not_trusted,
)
from lm_eval_lora_drop.engine.plain import plain_runner
from lm_eval_lora_drop.engine.requests import needs_own_batch
from lm_eval_lora_drop.engine.shared import why_not_shared
from lm_eval_lora_drop.errors import LoraDropError
from lm_eval_lora_drop.harness.documents import Document
from lm_eval_lora_drop.sweep.backend import Runner, Work
from lm_eval_lora_drop.variant import Variant
from testing import tiny

SHARED, RULE, CHECK, RUNNING = "shared", "plain by rule", "plain by check", "plain from a failure on"
DECODER = "decoder"
REFUSED, HF_FAILS, WRONG, CRASH, LEFT_OUT = "refused", "hf fails", "WRONG", "CRASH", "left out"
TOLERANCE = 2e-4
"""What a log-likelihood in fp32 may differ by, for every nat of it (at least one)."""
QUANTISED = 0.05
"""The same where the base is quantised: its kernels round anew for another shape of the batch."""
Answers = dict[tuple[Variant, int], tuple[Any, ...]]


@dataclass(frozen=True)
class Outcome:
    """What happened to one kind of requests; `differ` of `compared` responses differ, at near ties or by rounding."""

    what: str
    why: str = ""
    compared: int = 0
    differ: int = 0
    largest: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For the work file."""
        return {key: value for key, value in vars(self).items() if value or key == "what"}


class _Said(logging.Handler):
    """What the product says in its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def last(self, beginning: str) -> str | None:
        found = [line for line in self.lines if line.startswith(beginning)]
        return found[-1].removeprefix(beginning) if found else None


def run_case(case: Case, folder: Path) -> dict[str, dict[str, Any]]:
    """Outcomes by kind of request, and of the evaluated split under `evaluated`."""
    return {kind: outcome.to_json() for kind, outcome in _outcomes(case, folder)}


def _outcomes(case: Case, folder: Path) -> Iterator[tuple[str, Outcome]]:
    asked = (case.asked or usual)()
    kinds = [*asked, *(["evaluated"] if "generate_until" in asked else [])]
    try:
        paths = _make(case, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        yield from ((kind, Outcome(LEFT_OUT, _said(error))) for kind in kinds)
        return
    if case.edit is not None:
        what, compared, wrong = run_identity(case, paths, folder)
        yield "generate_until", Outcome(WRONG if wrong else what, "", compared, wrong)
        return
    model_args = {"device": "cpu", "dtype": case.dtype, "batch_size": 1, **case.model_args}
    if "softmax_dtype" in model_args:
        model_args["softmax_dtype"] = getattr(torch, model_args["softmax_dtype"])
    harness: dict[str, list[list[Any]] | Exception] = {}
    try:
        own = {name: value for name, value in model_args.items() if not name.startswith("sweep_")}
        # In a batch HFLM ends answers elsewhere where a stop sequence is a special token.
        hf = HFLM(**paths, **{**own, "batch_size": 1})
        for kind, documents in asked.items():
            harness[kind] = _by_harness(hf, kind, documents)
        del hf
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        harness |= {kind: error for kind in kinds if kind not in harness}
    try:
        lm = LoraDropLM(**paths, boundary="auto", sweep_dir=str(folder / "sweeps"), **model_args)
    except LoraDropError as error:
        yield from ((kind, Outcome(REFUSED, _said(error))) for kind in kinds)
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        yield from ((kind, Outcome(_failed(harness.get(kind)), _said(error))) for kind in kinds)
        return
    if case.more:
        other = tiny.make_adapter(Path(paths["pretrained"]), folder / "other", seed=7, r=2, target_modules=["q_proj"])
        lm.model.load_adapter(str(other), adapter_name="other")
        lm.layers = AdapterLayers.of(lm.model)
    said = _Said()
    logging.getLogger("lm_eval_lora_drop").addHandler(said)
    for kind, documents in asked.items():
        yield kind, _guarded(harness[kind], lambda k=kind, d=documents: _sweep(lm, case, d, harness[k], said))
    if "evaluated" in kinds:
        documents = asked["generate_until"]
        yield "evaluated", _guarded(harness["generate_until"], lambda: _evaluated(lm, documents))


def _guarded(harness: Any, answer: Any) -> Outcome:
    if isinstance(harness, Exception):
        return Outcome(HF_FAILS, _said(harness))
    try:
        return answer()
    except LoraDropError as error:
        return Outcome(REFUSED, _said(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return Outcome(CRASH, _said(error))


def _failed(harness: Any) -> str:
    return HF_FAILS if isinstance(harness, Exception) else CRASH


def _make(case: Case, folder: Path) -> dict[str, str]:
    config = make_config(case.family, case.config)
    with torch.device("meta"):
        size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"no tiny model: {size:,} parameters")
    tiny.ARCHITECTURES[case.family] = lambda _: config
    base = tiny.make_base(folder / "base", case.family, num_layers=LAYERS)
    if case.generation_config:
        path = base / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **case.generation_config}))
    lora = dict(case.lora)
    if lora.get("target_modules") == "attention":
        lora["target_modules"] = _attention(base)
    adapter = tiny.make_adapter(base, folder / "adapter", **lora)
    if case.says_special:
        _say_special(base, adapter)
    if case.spoil:
        path = adapter / "adapter_model.safetensors"
        save_file(case.spoil(load_file(path)), path)
    if case.quantisation:
        base = _quantise(base, case.quantisation, folder / "quantised")
    return {"pretrained": str(base), "peft": str(adapter)}


def _say_special(base: Path, adapter: Path) -> None:
    """Swap `<s>` and `</s>` with what the model says most often, in its output layer."""
    hf = HFLM(pretrained=str(base), peft=str(adapter), device="cpu", dtype="float32")
    said: Counter[int] = Counter()
    for prompt in PROMPTS:
        ids, mask = hf.tok_batch_encode([prompt])
        tokens = hf.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
        said.update(tokens[0, ids.shape[1] :].tolist())
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    for special, (often, _) in zip((1, 2), [one for one in said.most_common() if one[0] > 2], strict=False):
        head.weight.data[[special, often]] = head.weight.data[[often, special]]
    model.save_pretrained(base)


def _attention(base: Path) -> list[str]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and ("attn" in name.lower() or "attention" in name.lower())
    ]
    if not names:
        raise ValueError("no linear layer in an attention")
    return names


def _quantise(base: Path, kind: str, folder: Path) -> Path:
    """The model saved with quantised weights."""
    config = quantisation(kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def _by_harness(hf: Any, kind: str, documents: Sequence[Document]) -> list[list[Any]]:
    """HFLM's answers with the adapter as PEFT loads it, and within PEFT's own `disable_adapter`."""
    requests = [request for document in documents for request in document.requests]

    def answer() -> list[Any]:
        return getattr(hf, kind)(list(requests), disable_tqdm=True)

    full = answer()
    with hf.model.disable_adapter():
        return [full, answer()]


def _sweep(lm: Any, case: Case, documents: Sequence[Document], harness: Any, said: _Said) -> Outcome:
    variants = _variants(lm.shape.num_layers)
    if case.group == "families":
        variants = [variants[0], *variants[2:-1:2], variants[-1]]
    if case.more:
        variants = [*variants, *(replace(variant, adapter="other") for variant in variants)]
    rule = why_not_shared(lm, lm.layers, documents, variants)
    way = lm.prepare(documents, variants)
    work = [Work(document, tuple(variants)) for document in documents]
    found = _answers(way.runner, work)
    plain = found if way.engine == "plain" else _answers(plain_runner(lm, lm.layers), work)
    if way.engine == "shared":
        failed = said.last("Falling back to the plain pass from here on (slower): ")
        what, why = (RUNNING, failed) if failed else (SHARED, "")
    else:
        what, why = (RULE, rule) if rule else (CHECK, said.last("Falling back to the plain pass (slower): ") or "")
    outcome = _compare(lm, case, documents, plain, found)
    full, base = (Variant.full(lm.shape.num_layers), Variant.base(lm.shape.num_layers))
    by_hand: Answers = {}
    for variant, given in zip((full, base), harness, strict=True):
        responses = iter(given)
        for document in documents:
            by_hand[variant, document.doc_id] = tuple(next(responses) for _ in document.requests)
    ends = _compare(lm, case, documents, by_hand, {key: plain[key] for key in by_hand})
    if WRONG in (outcome.what, ends.what):
        return replace(outcome if outcome.what == WRONG else ends, why=f"{what}: {(outcome.why or ends.why)}")
    return replace(outcome, what=what, why=why or "")


def _variants(num_layers: int) -> list[Variant]:
    ks = sorted({round(place * num_layers / 4) for place in range(5)}, reverse=True)
    return [Variant.below(k, num_layers) for k in ks]


def _answers(runner: Runner, work: Sequence[Work]) -> Answers:
    given = [answer for answers in runner(work) for answer in answers]
    found = {(answer.variant, answer.document.doc_id): answer.responses for answer in given}
    wanted = {(variant, item.document.doc_id) for item in work for variant in item.variants}
    if len(given) != len(found) or found.keys() != wanted:
        raise ValueError(f"{len(given)} answers where {len(wanted)} were asked for")
    return found


def _compare(lm: Any, case: Case, documents: Sequence[Document], expected: Answers, found: Answers) -> Outcome:
    """Equal, or different at near ties and by rounding only, or wrong."""
    compared = differ = 0
    largest = 0.0
    tolerance = QUANTISED if case.quantisation else TOLERANCE
    for (variant, doc_id), responses in expected.items():
        requests = documents[doc_id].requests
        for request, theirs, ours in zip(requests, responses, found[variant, doc_id], strict=True):
            compared += 1
            if isinstance(theirs, str):
                if ours == theirs:
                    continue
                differ += 1
                with lm.layers.keep(variant):
                    by, allowed = divergence(lm, request, ours, theirs, _slack(case))
            else:
                one, other = (float(x[0] if isinstance(x, tuple) else x) for x in (ours, theirs))
                by, allowed = abs(one - other), tolerance * max(1.0, abs(other))
                differ += by > 0
                if isinstance(theirs, tuple) and ours[1] != theirs[1] and not case.quantisation:
                    by = float("inf")
            largest = max(largest, by)
            if not by <= allowed:
                return Outcome(WRONG, f"{variant.label}, document {doc_id}: {ours!r}, not {theirs!r}", compared, differ)
    return Outcome("", "", compared, differ, largest)


def _slack(case: Case) -> float:
    """What is added to rounding before two texts count as different."""
    return QUANTISED if case.quantisation else 0.0


def _evaluated(lm: Any, documents: Sequence[Document]) -> Outcome:
    requests = [request for document in documents for request in document.requests]
    if len(requests) <= CHECKED:
        # So many are HFLM's own: some more, for the decoder.
        requests += [
            replace(request, arguments=(prompt, requests[0].args[1]), idx=index)
            for index, (request, prompt) in enumerate(zip(requests, PROMPTS[3:], strict=False))
        ]
    # More than one row, so that rows leave and come.
    lm.batch_size_per_gpu = max(3, lm.batch_size_per_gpu)
    rule = why_left_to_harness(lm, requests)
    if not rule:
        # The decoder gets no request that HFLM answers in a batch of its own.
        requests = [
            one for one, by_itself in zip(requests, needs_own_batch(lm, requests), strict=True) if not by_itself
        ]
    if not requests:
        return Outcome(RULE, "every request needs a batch of its own")
    compared = differ = 0
    left = ""
    for variant in _variants(lm.shape.num_layers)[:3:2]:
        with lm.layers.keep(variant):
            try:
                theirs = lm.harness_answers("generate_until", list(requests), disable_tqdm=True)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                return Outcome(HF_FAILS, f"in a batch of several: {_said(error)}")
            few = slice(0, None, max(1, len(requests) // CHECKED))
            left = left or rule or why_not_trusted(lm, requests[few], theirs[few]) or ""
            ours = theirs if left else decode_requests(lm, requests)
            for index, (request, one, other) in enumerate(zip(requests, ours, theirs, strict=True)):
                compared += 1
                if one == other:
                    continue
                differ += 1
                by, allowed = divergence(lm, request, one, other)
                if by <= allowed or _depends_on_the_batch(lm, requests, index, one):
                    continue
                return Outcome(WRONG, f"{variant.label}: {one!r}, not {other!r}", compared, differ)
    if rule:
        return Outcome(RULE, rule, compared, differ)
    return Outcome(CHECK if left else DECODER, left, compared, differ)


def _depends_on_the_batch(lm: Any, requests: Sequence[Any], index: int, ours: str) -> bool:
    """Whether HFLM itself says what we say when it answers the request alone."""
    before, lm.batch_size_per_gpu = lm.batch_size_per_gpu, 1
    try:
        return bool(lm.harness_answers("generate_until", [requests[index]], disable_tqdm=True) == [ours])
    finally:
        lm.batch_size_per_gpu = before


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:160]
    return text if isinstance(error, LoraDropError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("lm_eval", "transformers", "lm_eval_lora_drop"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    yield
