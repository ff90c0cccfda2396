"""Why a LoRA may score below its base model in lm_eval: what it was trained with and the run did not do.

lm_eval takes the base model's tokenizer and applies no chat template unless told. Read are the adapter's files, the
tokenizers and configurations, and what a run recorded of its settings; no weights.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.adapter.files import AdapterFiles
from lm_eval_lora_drop.text import visible

if TYPE_CHECKING:
    from lm_eval_lora_drop.record.runs import Run

_MARK = "marker"
_QUANTISED = re.compile(r"[-_](bnb[-_])?[48]bit|[-_](gptq|awq)\b", re.IGNORECASE)


@dataclass(frozen=True)
class EvaluatedPrompts:
    """What lm_eval was given; its defaults where no run is known."""

    model_args: Mapping[str, str] = field(default_factory=dict)
    chat_template: bool = False
    system_instruction: str | None = None
    until: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: Run | None, task: str | None) -> EvaluatedPrompts:
        """Those of a run's task."""
        if run is None:
            return cls()
        config = run.tasks[task].config if task in run.tasks else {}
        until: set[str] = set()
        for given in (config.get("generation_kwargs"), run.config.get("gen_kwargs")):
            found = given.get("until") if isinstance(given, dict) else None
            if isinstance(found, str) and found.startswith("["):  # as --gen_kwargs passes a list on
                try:
                    found = ast.literal_eval(found)
                except (ValueError, SyntaxError):
                    found = [found]
            until |= {str(one) for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)}
        template, system = run.data.get("chat_template"), run.data.get("system_instruction")
        return cls(run.model_args, template is not None, system, frozenset(until))


def find_causes(files: AdapterFiles, base: str, settings: EvaluatedPrompts, prompts: Sequence[str]) -> list[str]:
    """A line for each cause found, with the option that cures it."""
    from transformers import AutoConfig, AutoTokenizer

    # What somebody else's files and templates may raise has no end; a check of the adapter goes on without.
    try:
        used = AutoTokenizer.from_pretrained(settings.model_args.get("tokenizer") or base)
        brought = any(files.folder.glob("tokenizer*"))
        trained = AutoTokenizer.from_pretrained(str(files.folder)) if brought else used
        config = AutoConfig.from_pretrained(base)
        lines = [
            *_of_template(files.source, trained, used, settings, brought=brought),
            *_of_begin(trained, used, settings, prompts, brought=brought),
            *_of_end(trained, used, base, settings, brought=brought),
            *_of_base(files, base, config, settings),
        ]
    except Exception as error:  # noqa: BLE001
        lines = [f"tokenizer or configuration cannot be compared ({' '.join(str(error).split())[:200]})."]
    spaces = 0 if settings.chat_template else sum(prompt != prompt.rstrip(" \t") for prompt in prompts)
    if spaces:
        lines.append(
            f"{spaces} of {len(prompts)} prompts end in a space, so the answer begins with other tokens than in "
            "training. Take the space out of the task's doc_to_text; target_delimiter adds it to the answer."
        )
    return [visible(line) for line in lines]


def _of_template(source: str, trained: Any, used: Any, settings: EvaluatedPrompts, *, brought: bool) -> Iterator[str]:
    if not (brought and trained.chat_template):
        return
    if not settings.chat_template:
        yield (
            "the adapter's tokenizer has a chat template, and none is applied: a model trained on chats answers plain "
            "prompts worse. Give --apply_chat_template"
            + ("." if _same_chat(trained, used) else f" and tokenizer={source}.")
        )
    elif not _same_chat(trained, used):
        yield (
            "the chat template of the adapter's tokenizer is not the one applied (its turns or its system prompt "
            f"differ). Give tokenizer={source} in --model_args."
        )
    system = settings.system_instruction
    if system and (own := _default_system(trained)) and system.strip() not in own:
        yield (
            f"the adapter's chat template has a system prompt of its own ({own[:80]!r}), which the run's replaces. "
            "Leave out --system_instruction."
        )


def _same_chat(trained: Any, used: Any) -> bool:
    return bool(used.chat_template) and _turn(trained) == _turn(used)


def _turn(tokenizer: Any, *, system: str | None = None) -> tuple[str, str]:
    """What a chat has before and behind what the user says, to where the answer begins."""
    chat = [{"role": "user", "content": _MARK}]
    if system is not None:
        chat.insert(0, {"role": "system", "content": system})
    before, _, behind = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).partition(_MARK)
    return before, behind


def _default_system(tokenizer: Any) -> str:
    """What a template says before the first turn where the user gives no system prompt; "" for none."""
    alone, _ = _turn(tokenizer)
    empty, _ = _turn(tokenizer, system="")
    return alone if len(alone) > len(empty) else ""


def _of_begin(
    trained: Any, used: Any, settings: EvaluatedPrompts, prompts: Sequence[str], *, brought: bool
) -> Iterator[str]:
    def begins(tokenizer: Any) -> bool:
        bos = tokenizer.bos_token_id
        return bos is not None and tokenizer(_MARK).input_ids[:1] == [bos]

    given = settings.model_args.get("add_bos_token")
    adds = begins(used) if given is None else given.lower() == "true"
    if brought and adds != begins(trained):
        what = (
            "missing: the adapter's tokenizer begins"
            if begins(trained)
            else "added: no tokenizer of the adapter begins"
        )
        yield (
            f"the first token (BOS, {trained.bos_token or used.bos_token}) is {what} a text with it. Give "
            f"add_bos_token={begins(trained)} in --model_args."
        )
    bos = used.bos_token
    if bos and (twice := sum(prompt.startswith(bos * 2) for prompt in prompts)):
        yield (
            f"{twice} of {len(prompts)} prompts begin with {bos} twice: the chat template adds it already. Take it out "
            "of the task's doc_to_text, its description or --system_instruction."
        )


def _of_end(trained: Any, used: Any, base: str, settings: EvaluatedPrompts, *, brought: bool) -> Iterator[str]:
    """lm_eval stops at the tokenizer's end token, at those of the generation config, and at `until`."""
    from transformers import GenerationConfig

    try:
        ids = GenerationConfig.from_pretrained(base).eos_token_id
    except OSError:
        ids = None
    stops = {
        used.eos_token,
        *used.convert_ids_to_tokens(ids if isinstance(ids, list) else [] if ids is None else [ids]),
    }
    stops |= settings.until
    ends = [trained.eos_token]
    if trained.chat_template and (brought or settings.chat_template):
        chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _MARK}]
        behind = trained.apply_chat_template(chat, tokenize=False).partition(_MARK)[2].strip()
        ends += [one for one in trained.all_special_tokens if behind.startswith(one)]
        ends += [str(one) for one in trained.added_tokens_decoder.values() if behind.startswith(str(one))]
    for end in dict.fromkeys(ends):
        if end and not any(end.startswith(stop) for stop in stops if stop):
            yield (
                f"the adapter was trained to end its answers with {end}, at which lm_eval does not stop ("
                f"{', '.join(sorted(filter(None, stops)))}). Give --gen_kwargs 'until=[\"{end}\"]'."
            )


def _of_base(files: AdapterFiles, base: str, config: Any, settings: EvaluatedPrompts) -> Iterator[str]:
    trained, args = str(files.config.get("base_model_name_or_path") or ""), settings.model_args
    if trained and trained.rstrip("/").rpartition("/")[2].lower() != base.rstrip("/").rpartition("/")[2].lower():
        how = " (a quantised one)" if _QUANTISED.search(trained) else ""
        yield f"the adapter was trained on {trained}{how}, and evaluated is {base}. Give pretrained={trained}."
    revision = files.config.get("revision")
    if revision and revision != args.get("revision", "main"):
        yield (
            f"the adapter was trained on revision {revision} of its base model, and evaluated is "
            f"{args.get('revision', 'main')}. Give revision={revision} in --model_args."
        )
    stored = files.dtype
    evaluated = args.get("dtype", "auto")
    if evaluated == "auto":
        evaluated = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if {stored, evaluated} == {"float16", "bfloat16"}:
        yield (
            f"the adapter was trained in {stored}, and evaluated is {evaluated}, in which numbers overflow or round "
            f"otherwise. Give dtype={stored} in --model_args."
        )
