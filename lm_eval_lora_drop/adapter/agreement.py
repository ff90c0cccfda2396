"""Do all ways to an adapter's answers agree? The same prompts through each, compared token by token.

The reference is what `--model hf-lora-drop` evaluates: the full adapter in PEFT, of which a variant is kept. Against
it stand merged weights, an export loaded by plain PEFT, a merged export, another program. The tolerance is the
reference itself at another batch shape: what differs by no more than a few times that is rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch.nn.utils.rnn import pad_sequence

from lm_eval_lora_drop.adapter import files as adapter_files
from lm_eval_lora_drop.adapter import health
from lm_eval_lora_drop.adapter.export import export_adapter
from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.adapter.fold import Survival
from lm_eval_lora_drop.adapter.layers import AdapterLayers
from lm_eval_lora_drop.adapter.places import tie_again
from lm_eval_lora_drop.errors import AdapterError, ArgumentError
from lm_eval_lora_drop.variant import Variant

PROMPTS = (
    "The capital of France is",
    "Q: Anna has 3 apples and buys 4 more. How many apples does she have?\nA:",
    "Tom: Are you coming tonight?\nLisa: Sorry, I have to work.\nSummary:",
    "def add(a, b):\n    return",
    "Translate to German: Good morning, how are you?\n",
    "In the beginning there was nothing, and then",
)
"""What is asked where the user names no prompts: short, and of several kinds, since an adapter may change some only."""

# Nats per token that are rounding whatever the noise of the run is: of the coarsest of the dtypes involved.
_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.2}
_TIMES_THE_NOISE = 4
_FLOOR = 1e-3
# Of the tokens that are written, the share that two models have in common at most, if they are to be two.
_MOST_SAME = 0.9


@dataclass(frozen=True)
class PromptOutputs:
    """Per prompt the log-probabilities of its tokens from the second on, and its greedy continuation."""

    logprobs: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]


Ask = Callable[[Path, Sequence[list[int]], int], PromptOutputs]
"""Adapter folder, prompts as token ids, tokens to write -> answers of another program with its own base model."""


@dataclass(frozen=True)
class Served:
    """A server's answers: texts, whether each ended by itself, and log-probabilities of the prompts as in
    `PromptOutputs`."""

    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    logprobs: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class AgreementRow:
    """One way. `difference` is the largest of all tokens, in nats, None where there is nothing to compare; `agrees` is
    None for what is shown only."""

    name: str
    difference: float | None
    same_tokens: str
    agrees: bool | None
    note: str


@dataclass(frozen=True)
class Agreement:
    """All ways, the reference first; and how much of the LoRA merged weights hold, where they could be merged."""

    rows: tuple[AgreementRow, ...]
    survival: Survival | None = None

    @property
    def agrees(self) -> bool:
        """Whether no way contradicts the reference."""
        return all(row.agrees is not False for row in self.rows)

    def table(self) -> str:
        """For the terminal."""
        cells = [
            (row.name, "" if row.difference is None else f"{row.difference:.1e}", row.same_tokens, row.note)
            for row in self.rows
        ]
        return tabulate(cells, headers=("way", "largest difference", "same tokens", "verdict"), disable_numparse=True)


def check_agreement(
    source: str,
    kept: Variant,
    base: str,
    *,
    export: Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    tokens: int = 16,
    dtype: str = "float32",
    device: str = "cpu",
    scratch: Path,
    others: dict[str, Ask | str] | None = None,
    served: Sequence[Served] = (),
) -> Agreement:
    """Compare every way to the answers of the adapter `source`, kept as `kept`, on the base model `base`.

    `export` is a folder that was exported (an adapter or a merged model); where there is none, one is made in
    `scratch`. `others` are further programs, or why they are not asked; `served` what a server answered, asked twice.

    Raises:
        AdapterError: the adapter itself is not in order.
        ArgumentError: nothing is kept, or `export` is neither adapter nor model.
    """
    from transformers import AutoTokenizer

    files = adapter_files.open_adapter(source)
    found = health.check_weights(files)
    if reason := "nothing is kept" if kept.is_base else found.why_base(kept):
        raise ArgumentError(f"there is nothing to check: {reason}. Name layers that have LoRA.")
    if not kept.is_full:
        health.check_divisible(files)
    health.check_on(files, base)
    has_tokens = files.vocabulary is not None and any(files.folder.glob("tokenizer*"))
    tokenizer = AutoTokenizer.from_pretrained(str(files.folder) if has_tokens else base)
    asked = [tokenizer(prompt).input_ids for prompt in prompts]
    if served and (short := [prompt for prompt, ids in zip(prompts, asked, strict=True) if len(ids) < 2]):
        raise ArgumentError(f"the prompt {short[0][:80]!r} has fewer than two tokens. Give a longer one.")
    asked = [ids for ids in asked if len(ids) > 1]
    if not asked:
        raise ArgumentError("none of the prompts has two tokens or more. Give longer ones.")
    judge = _RowCollector(asked, tokens, dtype)
    with _loaded(base, files, dtype, device) as model:
        tie_again(model, source)  # as lm_eval does: a trained embedding is the head of a tied model too
        layers = AdapterLayers.of(model)
        with layers.keep(kept):
            judge.reference(_answers(model, asked, tokens), _in_one_batch(model, asked), model.dtype)
        with layers.keep(Variant.base(kept.num_layers)):
            judge.base(_answers(model, asked, tokens))
        if served:
            with layers.keep(kept):
                judge.served(served, _Margins(model, tokenizer, prompts, asked))
        judge.way("merged weights, in memory", lambda: _merged(judge, layers, kept, model), model.dtype, required=False)
        if layers.followers:
            judge.rows[0] = dataclasses.replace(
                judge.rows[0], note=f"{judge.rows[0].note}; lm_head is the trained embedding, as with --model hf"
            )
    folder = export
    if folder is None:
        folder = scratch / "export"
        export_adapter(source, kept, folder)
    judge.way(
        f"export {folder.name if export else '(made now)'}", lambda: _exported(judge, base, folder, dtype, device)
    )
    for name, ask in (others or {}).items():
        if isinstance(ask, str):
            judge.rows.append(AgreementRow(name, None, "", None, ask))
        elif (folder / adapter_files.CONFIG).is_file():
            judge.way(name, functools.partial(ask, folder, asked, tokens))
    return Agreement(tuple(judge.rows), judge.survival)


class _RowCollector:
    """Collects the rows, and says of each difference whether it is rounding."""

    def __init__(self, asked: Sequence[list[int]], tokens: int, dtype: str) -> None:
        self.asked, self.tokens, self.dtype = asked, tokens, dtype
        self.rows: list[AgreementRow] = []
        self.survival: Survival | None = None

    def reference(self, answers: PromptOutputs, batched: PromptOutputs, dtype: torch.dtype) -> None:
        self._answers, self._dtype = answers, dtype
        self._noise = _difference(answers, batched)
        self.rows = [
            AgreementRow(
                "PEFT, as evaluated", None, "", None, f"the reference: {len(self.asked)} prompts, {str(dtype)[6:]}"
            ),
            AgreementRow("the same in one batch", self._noise, "", None, "noise of this run"),
        ]

    def base(self, answers: PromptOutputs) -> None:
        self._effect, self._base = _difference(self._answers, answers), answers
        # Both were computed at one batch shape, so other tokens are no rounding of the batch.
        same, tokens = self._equal(answers)
        shows = self._shows = self._effect > self._noise_bound() or same < _MOST_SAME * tokens
        note = "differs, as it should"
        if not shows and self._dtype in (torch.float16, torch.bfloat16):
            note = f"INCONCLUSIVE in {str(self._dtype)[6:]}: rounding is {self._noise:.1e}. Use --dtype float32"
        elif not shows:
            note = "NO DIFFERENCE: the adapter does nothing on these prompts"
        self.rows.append(AgreementRow("base model", self._effect, self._same(answers), shows, note))

    def way(
        self, name: str, ask: Callable[[], PromptOutputs], dtype: torch.dtype | None = None, *, required: bool = True
    ) -> None:
        try:
            answers = ask()
        except AdapterError as error:
            note = f"{'REFUSED' if required else 'not possible'}: {error}"
            self.rows.append(AgreementRow(name, None, "", False if required else None, note))
            return
        tolerance = self._tolerance(dtype or self._dtype)
        difference = _difference(self._answers, answers)
        agrees = difference <= tolerance
        note = "agrees" if agrees else f"DIFFERS: more than the {tolerance:.1e} of rounding"
        # Equal to the bit is agreement, but where the base model says the same too, it tells nothing.
        if agrees and self._noise_bound() >= self._effect and (difference or not self._shows):
            agrees = False
            note = f"INCONCLUSIVE in {str(self._dtype)[6:]}: rounding may be {tolerance:.1e}. Use --dtype float32"
        self.rows.append(AgreementRow(name, difference, self._same(answers), agrees, note))

    def served(self, served: Sequence[Served], margins: _Margins) -> None:
        """What the server says is compared in nats: its log-probabilities of the prompts, and of each token that it
        wrote how far what was evaluated prefers another. Its dtype is not known: 16 bits are granted."""
        first, again = served
        differences, effects, noises, from_base = [], [], [], []
        if first.logprobs is not None and again.logprobs is not None:
            if [*map(len, first.logprobs)] != [*map(len, self._answers.logprobs)]:
                note = "DIFFERS: it reads the prompts as other tokens than lm_eval. Compare tokenizers and first tokens"
                self.rows.append(AgreementRow("server", None, "", False, note))
                return
            mine = PromptOutputs(first.logprobs, ())
            noises.append(_difference(mine, PromptOutputs(again.logprobs, ())))
            differences.append(_difference(self._answers, mine))
            effects.append(self._effect)
            from_base.append(_difference(self._base, mine))
        said, said_again = (margins.largest(one.texts, one.ended) for one in served)
        noises.append(abs(said - said_again))
        tolerance = max(self._tolerance(torch.bfloat16), _TIMES_THE_NOISE * max(noises))
        # Texts that are not read back as the tokens they were written in tell nothing.
        if margins.of_tokens(self._answers.tokens) <= tolerance:
            differences.append(said)
            effects.append(margins.of_tokens(self._base.tokens))
        way = " and ".join(["log-probabilities"] * len(from_base) + ["texts"] * (len(effects) - len(from_base)))
        difference, effect = max(differences, default=float("inf")), max(effects, default=0.0)
        self.rows.append(AgreementRow("server, asked again", max(noises), "", None, "noise of the server"))
        if agrees := difference <= tolerance < effect:
            note = f"agrees ({way})"
        elif effect <= tolerance:
            note = f"INCONCLUSIVE: base model and adapter differ by {effect:.1e} only. Give more --prompts"
        elif max(from_base, default=float("inf")) <= tolerance or margins.texts(self._base.tokens) == [*first.texts]:
            note = "DIFFERS: it answers as the base model. Serve the adapter, and name it by --served-model"
        else:
            note = f"DIFFERS: more than the {tolerance:.1e} of rounding: another adapter or base model"
            note += "; for a server in 16 bits give --dtype bfloat16" if self._dtype == torch.float32 else ""
        equal = sum(one == other for one, other in zip(margins.texts(self._answers.tokens), first.texts, strict=True))
        self.rows.append(AgreementRow("server", difference, f"{equal} of {len(first.texts)} texts", agrees, note))

    def coarser(self, dtype: torch.dtype) -> None:
        self._dtype = max(self._dtype, dtype, key=lambda kind: _ROUNDING.get(kind, 0.0))

    def _noise_bound(self) -> float:
        return max(_FLOOR, _TIMES_THE_NOISE * self._noise)

    def _tolerance(self, dtype: torch.dtype) -> float:
        """What a way in this dtype may differ by: the noise of this run, or the rounding of the dtype as far as it is
        small beside what the adapter does."""
        coarsest = max(_ROUNDING.get(kind, 0.2) for kind in (dtype, self._dtype))
        return max(self._noise_bound(), min(coarsest, self._effect / 4))

    def _equal(self, answers: PromptOutputs) -> tuple[int, int]:
        """How many of the written tokens are the reference's, and how many it wrote."""
        pairs = zip(self._answers.tokens, answers.tokens, strict=True)
        same = sum(one == other for mine, theirs in pairs for one, other in zip(mine, theirs, strict=False))
        return same, sum(map(len, self._answers.tokens))

    def _same(self, answers: PromptOutputs) -> str:
        return "{} of {}".format(*self._equal(answers))


class _Margins:
    """How far a model prefers other tokens than those of given texts: 0 for what it says itself, greedily."""

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[str], asked: Sequence[list[int]]) -> None:
        self._model, self._tokenizer, self._prompts, self._asked = model, tokenizer, prompts, asked
        ends = model.generation_config.eos_token_id
        self._ends = ends if isinstance(ends, list) else [] if ends is None else [ends]

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]

    def of_tokens(self, tokens: Sequence[Sequence[int]]) -> float:
        """The largest of a model's own answers, read back from their texts as a server's are."""
        return self.largest(self.texts(tokens), [bool({*ids} & {*self._ends}) for ids in tokens])

    @torch.no_grad()
    def largest(self, texts: Sequence[str], ended: Sequence[bool]) -> float:
        """Over all tokens, in nats; a text that changes the prompt's own tokens is passed over."""
        found = [0.0]
        for prompt, ids, text, ends in zip(self._prompts, self._asked, texts, ended, strict=True):
            whole = torch.tensor(self._tokenizer(prompt + text).input_ids, device=self._model.device)
            if whole[: len(ids)].tolist() != ids:
                continue
            logprobs = self._model(whole[None]).logits[0, len(ids) - 1 :].float().log_softmax(-1)
            own = logprobs[:-1].gather(1, whole[len(ids) :, None])[:, 0]
            found += (logprobs[:-1].max(-1).values - own).tolist()
            if ends and self._ends:
                found.append(float(logprobs[-1].max() - logprobs[-1, self._ends].max()))
        return max(found)


@contextmanager
def _loaded(base: str, adapter: AdapterFiles | None, dtype: str, device: str) -> Iterator[Any]:
    """A model in plain Transformers, with an adapter in plain PEFT; freed afterwards: several are loaded in turn."""
    import peft
    from transformers import AutoModelForCausalLM

    try:
        make: Any = AutoModelForCausalLM.from_pretrained
        model = make(base, dtype=dtype).to(device)
    except (OSError, ValueError) as error:
        raise AdapterError(f"the model {base} cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    if adapter is not None:
        health.resize_vocabulary(adapter, model)
        model = peft.PeftModel.from_pretrained(model, str(adapter.folder))
    try:
        yield model.eval()
    finally:
        del model
        gc.collect()


def _merged(judge: _RowCollector, layers: AdapterLayers, kept: Variant, model: Any) -> PromptOutputs:
    with layers.merge(kept) as judge.survival:
        return _answers(model, judge.asked, judge.tokens)


def _exported(judge: _RowCollector, base: str, folder: Path, dtype: str, device: str) -> PromptOutputs:
    """Answers of an exported folder, once it has passed the checks of any adapter."""
    from transformers import AutoConfig

    if (folder / adapter_files.CONFIG).exists():
        files = adapter_files.open_adapter(str(folder))
        health.check_weights(files)
        health.check_on(files, base)
        with _loaded(base, files, dtype, device) as model:
            return _answers(model, judge.asked, judge.tokens)
    if not (folder / "config.json").exists():
        raise ArgumentError(
            f"--export must be an adapter or a model; {folder} has no adapter_config.json and no config.json."
        )
    stored = AutoConfig.from_pretrained(folder).dtype
    if isinstance(stored, torch.dtype):
        judge.coarser(stored)
    with _loaded(str(folder), None, dtype, device) as model:
        return _answers(model, judge.asked, judge.tokens)


@torch.no_grad()
def _answers(model: Any, asked: Sequence[list[int]], tokens: int) -> PromptOutputs:
    """Prompt by prompt, no padding anywhere."""
    from transformers import GenerationConfig

    own = model.generation_config
    greedy = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id or 0
    )
    logprobs, written = [], []
    for ids in asked:
        given = torch.tensor([ids], device=model.device)
        logprobs.append(_of_its_tokens(model(given).logits[0], given[0]))
        out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=greedy)
        written.append(tuple(out[0, len(ids) :].tolist()))
    return PromptOutputs(tuple(logprobs), tuple(written))


@torch.no_grad()
def _in_one_batch(model: Any, asked: Sequence[list[int]]) -> PromptOutputs:
    """Log-probabilities with all prompts side by side, filled up at the right; nothing is written."""
    given = pad_sequence([torch.tensor(ids) for ids in asked], batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids in asked], batch_first=True).to(model.device)
    logits = model(given, attention_mask=mask).logits
    rows = zip(logits, given, asked, strict=True)
    return PromptOutputs(tuple(_of_its_tokens(one[: len(ids)], row[: len(ids)]) for one, row, ids in rows), ())


def _of_its_tokens(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, ...]:
    """(length, vocabulary) and (length,) -> the log-probability of each token after the first."""
    return tuple(logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0].tolist())


def _difference(one: PromptOutputs, other: PromptOutputs) -> float:
    """The largest of all tokens; infinite where a way gives no number."""
    values = [abs(a - b) for p, q in zip(one.logprobs, other.logprobs, strict=True) for a, b in zip(p, q, strict=True)]
    return max(value if value == value else float("inf") for value in values)  # NaN is not itself
