"""Which providers of judges there are: ours, and those that other distributions bring."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import quoted


@dataclass(frozen=True)
class ProviderSpec:
    """A provider of judges.

    `module` has `open_provider(judge, timeout) -> Provider` (`judge.providers`) and, unless `judge.providers.replies`
    knows the provider, `read_reply(body) -> Reply` of a response's JSON object. `key_variable` holds the key of the
    official service, and is sent nowhere else unasked. `max_tokens`: an answer has ten, and thoughts may come before.
    """

    module: str
    key_variable: str | None = None
    max_tokens: int = 1024


PROVIDERS = {
    "openai": ProviderSpec("lm_eval_lora_drop.judge.providers.openai_sdk", "OPENAI_API_KEY", 2048),
    "anthropic": ProviderSpec("lm_eval_lora_drop.judge.providers.anthropic_sdk", "ANTHROPIC_API_KEY"),
    "google": ProviderSpec("lm_eval_lora_drop.judge.providers.google_sdk", "GEMINI_API_KEY", 2048),
    "hf": ProviderSpec("lm_eval_lora_drop.judge.providers.local", max_tokens=64),
}


def provider_spec(name: object) -> ProviderSpec:
    """The provider of this name: one of ours, else one that another distribution brings.

    Raises:
        ArgumentError: there is none.
    """
    if isinstance(name, str) and (name in PROVIDERS or name in _further_providers()):
        return PROVIDERS.get(name) or cast("ProviderSpec", _further_providers()[name].load())
    there = ", ".join([*PROVIDERS, *_further_providers()])
    raise ArgumentError(f"provider must be one of {there}; got {quoted(name)}.")


@functools.cache  # every reply asks, and the metadata of all distributions is read
def _further_providers() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group="lm_eval_lora_drop.judges")}
