"""Panel files: which judges are asked, how, at what price and under which limits. Keys come from the environment."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import package_folder

PROVIDERS: dict[str, str | None] = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GEMINI_API_KEY",
    "hf": None,
}
"""Provider: the environment variable that its key is read from unless the panel names another."""
ENVIRONMENT = "LORA_DROP_JUDGES"
_KEY_LIKE = re.compile(r"(api[_-]?key|token|secret|authorization|password)$", re.IGNORECASE)


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars for one call."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Judge:
    """One model of a panel, and how it is asked.

    `options` go to the SDK's request as they are. `structured` asks for JSON under a schema where the provider has it.
    """

    provider: str
    model: str
    name: str = ""
    base_url: str | None = None
    api_key_env: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    structured: bool = True
    max_tokens: int = 64
    price: Price | None = None

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key."""
        return self.api_key_env or PROVIDERS[self.provider]

    @property
    def key(self) -> str | None:
        """The key, None where there is none."""
        return os.environ.get(self.key_variable or "") or None

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the prompt; never the key, never the display name."""
        return {
            "provider": self.provider,
            "model": self.model,
            "base_url": self.base_url,
            "options": dict(self.options),
            "structured": self.structured,
            "max_tokens": self.max_tokens,
        }

    @property
    def where(self) -> tuple[str, str | None]:
        """Judges with the same value share a server, and so its concurrency limit."""
        return self.provider, self.base_url


@dataclass(frozen=True)
class Panel:
    """The judges and their limits: times in seconds, `max_spend` in US dollars per command."""

    judges: tuple[Judge, ...]
    source: str = ""
    max_spend: float | None = None
    concurrency: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 6
    backoff: float = 1.0
    max_wait: float = 120.0
    timeout: float = 60.0

    def limit(self, provider: str) -> int:
        """How many calls may be under way at once at each server of `provider`."""
        return 1 if provider == "hf" else self.concurrency.get(provider, 4)

    def secrets(self) -> list[str]:
        """The values that must never be written anywhere."""
        return [key for judge in self.judges if (key := judge.key)]

    def redact(self, text: str) -> str:
        """`text` without any judge's key."""
        for secret in self.secrets():
            text = text.replace(secret, "[key]")
        return text

    def check_keys(self) -> None:
        """Raises ArgumentError naming every variable that a judge needs and that is not set."""
        missing = {j.name: j.key_variable for j in self.judges if j.provider != "hf" and j.key is None}
        # A server of one's own often wants no key; the official ones always do.
        missing = {name: key for name, key in missing.items() if self._is_official(name)}
        if missing:
            said = ", ".join(f"{variable} (judge {name})" for name, variable in missing.items())
            raise ArgumentError(
                f"{self.source}: these environment variables must hold the API keys, and do not: {said}."
            )

    def _is_official(self, name: str) -> bool:
        return next(judge.base_url is None for judge in self.judges if judge.name == name)


def load_panel(path: str | Path, *, max_spend: float | None = None) -> Panel:
    """The panel of a YAML file, or of one that ships with the package by its bare name (`current`, `paper`).

    Raises:
        ArgumentError: no such file, or something in it that cannot be used.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        shipped = package_folder("configs") / "judges"
        names = sorted(found.stem for found in shipped.glob("*.yaml"))
        if str(path) not in names:
            raise ArgumentError(f"{path} is no panel file. Give a YAML file, or one that ships: {', '.join(names)}.")
        file = shipped / f"{path}.yaml"
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # A parser's message may quote the line, and with it whatever was wrongly written there.
        raise ArgumentError(f"{file}: cannot be read as YAML ({type(error).__name__}).") from None
    panel = parse_panel(data, str(file))
    return replace(panel, max_spend=max_spend) if max_spend is not None else panel


def panel_from(metadata: Mapping[str, Any] | None = None) -> Panel | None:
    """The panel that `--metadata '{"judges": ...}'` or else the environment variable LORA_DROP_JUDGES names, if any."""
    named = (metadata or {}).get("judges") or os.environ.get(ENVIRONMENT)
    return load_panel(named) if named else None


def parse_panel(data: Any, source: str) -> Panel:
    """The panel that a file's content describes.

    Raises:
        ArgumentError: an unknown entry, a wrong type, two judges of one name, a key written into the file.
    """
    if not isinstance(data, dict) or not isinstance(data.get("judges"), list) or not data["judges"]:
        raise ArgumentError(f"{source}: a panel file needs a list `judges` with at least one entry.")
    allowed = {entry.name for entry in fields(Panel)} - {"source"}
    _refuse_unknown(data, allowed, source)
    judges = [_parse_judge(entry, f"{source}, judge {number}") for number, entry in enumerate(data["judges"], 1)]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise ArgumentError(f"{source}: every judge needs a name of its own; got {', '.join(names)}. Set `name`.")
    numbers = {}
    for name, least in (("max_spend", 0), ("attempts", 1), ("backoff", 0), ("max_wait", 0), ("timeout", 0.001)):
        if data.get(name) is not None:
            numbers[name] = _number(data[name], least, f"{source}: {name}")
    if "attempts" in numbers:
        numbers["attempts"] = int(numbers["attempts"])
    concurrency = data.get("concurrency") or {}
    if not isinstance(concurrency, dict):
        raise ArgumentError(f"{source}: concurrency must map providers to numbers, e.g. {{openai: 8}}.")
    _refuse_unknown(concurrency, set(PROVIDERS), f"{source}: concurrency")
    limits = {name: int(_number(value, 1, f"{source}: concurrency of {name}")) for name, value in concurrency.items()}
    return Panel(tuple(judges), source, concurrency=limits, **numbers)  # type: ignore[arg-type]


def _parse_judge(entry: Any, where: str) -> Judge:
    if not isinstance(entry, dict):
        raise ArgumentError(f"{where}: must be a mapping with at least `provider` and `model`.")
    _refuse_unknown(entry, {item.name for item in fields(Judge)}, where)
    provider, model = entry.get("provider"), entry.get("model")
    if provider not in PROVIDERS:
        raise ArgumentError(f"{where}: provider must be one of {', '.join(PROVIDERS)}; got {provider!r}.")
    if not isinstance(model, str) or not model:
        raise ArgumentError(f"{where}: `model` must name a model of {provider}.")
    base_url = entry.get("base_url")
    if base_url is not None:
        parts = urlsplit(str(base_url))
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ArgumentError(f"{where}: base_url must begin with http:// or https://.")
        if parts.username or parts.password or parts.query:
            raise ArgumentError(f"{where}: base_url must hold no user, password or query. See api_key_env.")
    options = entry.get("options") or {}
    if not isinstance(options, dict):
        raise ArgumentError(f"{where}: options must be a mapping of request options.")
    _refuse_keys(options, where)
    price = entry.get("price")
    return Judge(
        provider=provider,
        model=model,
        name=re.sub(r"[^\w.-]+", "-", str(entry.get("name") or model)),
        base_url=base_url,
        api_key_env=_variable(entry.get("api_key_env"), where),
        options=options,
        structured=_flag(entry.get("structured", provider != "hf"), where),
        max_tokens=int(_number(entry.get("max_tokens", 64), 1, f"{where}: max_tokens")),
        price=None if price is None else _price(price, where),
    )


def _variable(name: Any, where: str) -> str | None:
    # The value is not repeated: somebody may have put the key itself here.
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(name)):
        raise ArgumentError(f"{where}: api_key_env must be the name of an environment variable, e.g. OPENAI_API_KEY.")
    return name


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{where}: structured must be true or false, got {value!r}.")
    return value


def _price(price: Any, where: str) -> Price | None:
    if not isinstance(price, dict):
        raise ArgumentError(f"{where}: price must be {{input: ..., output: ...}}, US dollars per million tokens.")
    _refuse_unknown(price, {"input", "output"}, f"{where}: price")
    if price.get("input") is None or price.get("output") is None:
        return None
    return Price(*(_number(price[name], 0, f"{where}: price, {name}") for name in ("input", "output")))


def _number(value: Any, least: float, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise ArgumentError(f"{where} must be a number of at least {least}, got {value!r}.")
    return value


def _refuse_keys(options: Mapping[Any, Any], where: str) -> None:
    for name, value in options.items():
        if _KEY_LIKE.search(str(name)):
            raise ArgumentError(f"{where}: {name} does not belong into a panel file. Name its variable in api_key_env.")
        if isinstance(value, dict):
            _refuse_keys(value, where)


def _refuse_unknown(given: Mapping[Any, Any], allowed: set[str], where: str) -> None:
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            key = " Keys come from the environment: name the variable in api_key_env." if name == "api_key" else ""
            raise ArgumentError(f"{where}: unknown entry {name}; there are {', '.join(sorted(allowed))}.{hint}{key}")
