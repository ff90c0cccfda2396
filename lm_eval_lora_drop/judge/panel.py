"""Panel files: which judges are asked, how, at what price and under which limits. Keys come from the environment.

The file is checked by hand rather than by a library: an error may not repeat a value, which can be a key in the wrong
place, and an unknown entry is answered with its near match.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import package_folder, read_yaml
from lm_eval_lora_drop.judge.known_providers import PROVIDERS, provider_spec, short_value
from lm_eval_lora_drop.judge.redact import Redactor, checked_options, checked_variable, sent_blocks, variable_in
from lm_eval_lora_drop.text import did_you_mean

ENVIRONMENT = "LORA_DROP_JUDGES"
RESERVED_NAMES = frozenset(("stderr", "verdicts", "agreement", "panel"))
"""What results are called beside the judges' own: `gpt_score_stderr` is no judge's score."""
_LONGEST_FILE = 200_000
_LONGEST_NAME = 60
_LONGEST_CRITERION = 500
_MOST_CRITERIA = 20


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
    max_tokens: int = 0
    """0: the provider's own number."""
    price: Price | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", self.max_tokens or provider_spec(self.provider).max_tokens)

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; None for a server of one's own for which none is named."""
        return self.api_key_env or (provider_spec(self.provider).key_variable if self.base_url is None else None)

    @property
    def key(self) -> str | None:
        """The key, None where there is none."""
        return os.environ.get(self.key_variable or "", "").strip() or None

    @property
    def references(self) -> list[str]:
        """The environment variables that values of `options` name (`$VARIABLE`)."""
        blocks = sent_blocks(self.options)
        return [found for block in blocks for value in block.values() if (found := variable_in(value))]

    @property
    def request_options(self) -> dict[str, Any]:
        """`options` with the values of the variables that they name; never to be written down."""
        options: dict[str, Any] = json.loads(json.dumps(dict(self.options)))
        for block in sent_blocks(options):
            for name, value in block.items():
                if (variable := variable_in(value)) is not None:
                    block[name] = os.environ.get(variable, "").strip()
        return options

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
    """The judges and their limits: times in seconds, `max_spend` in US dollars per command.

    Each judge answers every question `samples` times, and its score is the mean. `criteria`, name and one sentence
    each, go into the prompt.
    """

    judges: tuple[Judge, ...]
    source: str = ""
    max_spend: float | None = None
    concurrency: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 6
    backoff: float = 1.0
    max_wait: float = 120.0
    timeout: float = 60.0
    samples: int = 1
    criteria: Mapping[str, str] = field(default_factory=dict)

    def limit(self, provider: str) -> int:
        """How many calls may be under way at once at each server of `provider`."""
        return 1 if provider == "hf" else self.concurrency.get(provider, 4)

    def redactor(self) -> Redactor:
        """Takes every judge's key out of texts; also those of the official services, whether asked or not."""
        official = (os.environ.get(one.key_variable or "") for one in PROVIDERS.values())
        named = (os.environ.get(name, "").strip() for judge in self.judges for name in judge.references)
        return Redactor(filter(None, (*(judge.key for judge in self.judges), *named, *official)))

    def check_keys(self) -> None:
        """Raises ArgumentError naming every variable that must hold a key and holds none, or none that can be sent."""
        missing = [f"{judge.key_variable} (judge {judge.name})" for judge in self.judges if _lacks_key(judge)]
        missing += [
            f"{n} (judge {j.name})" for j in self.judges for n in j.references if not os.environ.get(n, "").strip()
        ]
        if missing:
            raise ArgumentError(
                f"{self.source}: environment variables of API keys that are not set: {', '.join(missing)}."
            )
        for judge in self.judges:
            if judge.key and not (judge.key.isascii() and judge.key.isprintable() and " " not in judge.key):
                raise ArgumentError(
                    f"{self.source}: {judge.key_variable} (judge {judge.name}) must hold one key of printable ASCII "
                    "without spaces; it does not. Set it again."
                )


def _lacks_key(judge: Judge) -> bool:
    """A server of one's own often wants no key; the official ones always do, and one that a panel names is meant."""
    return judge.provider != "hf" and judge.key_variable is not None and judge.key is None


def load_panel(path: str | Path, *, max_spend: float | None = None) -> Panel:
    """The panel of a YAML file, or of one that ships with the package by its bare name (`current`, `paper`).

    Raises:
        ArgumentError: no such file, or something in it that cannot be used.
    """
    shipped = package_folder("configs") / "judges"
    names = sorted(found.stem for found in shipped.glob("*.yaml"))
    try:
        file = Path(path).expanduser()
        if not file.is_file() and str(path) in names:
            file = shipped / f"{path}.yaml"
        there = file.is_file()  # not a device or a pipe, which may never end
    except (TypeError, OSError, RuntimeError, ValueError):  # no path, too long, ~nobody, a NUL
        there = False
    if not there:
        shown = str(path)[:200]
        raise ArgumentError(
            f"{shown!r} is not a panel file. Give a YAML file, or the name of an included one: {', '.join(names)}."
        )
    try:
        if file.stat().st_size > _LONGEST_FILE:
            raise ArgumentError(f"{file}: a panel file has at most {_LONGEST_FILE:,} bytes.")
    except OSError as error:
        raise ArgumentError(f"{file}: cannot be read ({error.strerror}).") from None
    try:
        data = read_yaml(file, "a panel of judges, YAML")
    except ArgumentError as error:
        # A parser's message may quote the line, and with it whatever was wrongly written there.
        raise ArgumentError(f"{file}: cannot be read as YAML ({type(error.__cause__ or error).__name__}).") from None
    panel = parse_panel(data, str(file))
    return replace(panel, max_spend=max_spend) if max_spend is not None else panel


def panel_from(metadata: Mapping[str, Any] | None = None) -> Panel | None:
    """The panel that `--metadata '{"judges": ...}'` or else the environment variable LORA_DROP_JUDGES names, if any."""
    named = (metadata or {}).get("judges") or os.environ.get(ENVIRONMENT)
    return load_panel(named) if named else None


_LIMITS = (
    ("max_spend", 0, 1e9),
    ("attempts", 1, 100),
    ("backoff", 0, 3600),
    ("max_wait", 0, 86400),
    ("timeout", 0.001, 86400),
    ("samples", 1, 100),
)


def parse_panel(data: Any, source: str) -> Panel:
    """The panel that a file's content describes.

    Raises:
        ArgumentError: an unknown entry, a wrong type, two judges of one name, a key written into the file.
    """
    if not isinstance(data, dict) or not isinstance(data.get("judges"), list) or not data["judges"]:
        raise ArgumentError(f"{source}: a panel file needs a list `judges` with at least one entry.")
    allowed = {entry.name for entry in fields(Panel)} - {"source"}
    refuse_unknown(data, allowed, source)
    judges = [_parse_judge(entry, f"{source}, judge {number}") for number, entry in enumerate(data["judges"], 1)]
    names = [judge.name for judge in judges]
    if len(set(names)) < len(names):
        raise ArgumentError(f"{source}: every judge needs a name of its own; got {', '.join(names)}. Set `name`.")
    numbers = {}
    for name, least, most in _LIMITS:
        if data.get(name) is not None:
            numbers[name] = _number(data[name], least, f"{source}: {name}", most)
    for name in ("attempts", "samples"):
        if name in numbers:
            numbers[name] = int(numbers[name])
    concurrency = data.get("concurrency") or {}
    if not isinstance(concurrency, dict):
        raise ArgumentError(f"{source}: concurrency must map providers to numbers, e.g. {{openai: 8}}.")
    refuse_unknown(concurrency, set(PROVIDERS), f"{source}: concurrency")
    limits = {
        name: int(_number(value, 1, f"{source}: concurrency of {name}", 1000)) for name, value in concurrency.items()
    }
    criteria = parse_criteria(data.get("criteria"), source)
    panel = Panel(tuple(judges), source, concurrency=limits, criteria=criteria, **numbers)  # type: ignore[arg-type]
    for judge in judges if panel.samples > 1 else ():
        if judge.options.get("temperature", 0 if judge.provider == "hf" else 1) == 0:
            raise ArgumentError(
                f"{source}: samples: {panel.samples} has no effect at temperature 0, where every answer is the same. "
                f"Set the temperature of judge {judge.name} to 1, or remove samples."
            )
    return panel


def parse_criteria(given: Any, where: str) -> dict[str, str]:
    """Criteria by name, one sentence each. Raises ArgumentError."""
    criteria = {} if given is None else given
    short = isinstance(criteria, dict) and len(criteria) <= _MOST_CRITERIA
    if not short or not all(
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z][\w -]{0,39}", name)
        and isinstance(text, str)
        and text.strip()
        and len(text) <= _LONGEST_CRITERION
        and text.isprintable()
        for name, text in criteria.items()
    ):
        raise ArgumentError(
            f"{where}: criteria must map at most {_MOST_CRITERIA} names to one sentence each of at most "
            f"{_LONGEST_CRITERION} characters, e.g. {{fluency: 'reads well'}}."
        )
    return dict(criteria)


def _parse_judge(entry: Any, where: str) -> Judge:
    if not isinstance(entry, dict):
        raise ArgumentError(f"{where}: must be a mapping with at least `provider` and `model`.")
    refuse_unknown(entry, {item.name for item in fields(Judge)}, where)
    provider, model = entry.get("provider"), entry.get("model")
    spec = provider_spec(provider, where)
    if not isinstance(model, str) or not model or len(model) > 500 or not model.isprintable():
        raise ArgumentError(f"{where}: `model` must name a model of {provider}.")
    price = entry.get("price")
    return Judge(
        provider=str(provider),
        model=model,
        name=_name(entry.get("name"), model, where),
        base_url=_base_url(entry.get("base_url"), where),
        api_key_env=checked_variable(entry.get("api_key_env"), where),
        options=checked_options(entry.get("options"), where),
        structured=_flag(entry.get("structured", provider != "hf"), where),
        max_tokens=int(_number(entry.get("max_tokens", spec.max_tokens), 1, f"{where}: max_tokens", 1_000_000)),
        price=None if price is None else _price(price, where),
    )


def _name(given: Any, model: str, where: str) -> str:
    """The name under which results are told; it becomes part of `gpt_score_<name>`."""
    if given is not None and not isinstance(given, str | int):
        raise ArgumentError(f"{where}: `name` must be a text, got {type(given).__name__}.")
    name = re.sub(r"[^\w.-]+", "-", str(given if given is not None else model)[: 10 * _LONGEST_NAME])
    if given is None:
        name = name[-_LONGEST_NAME:]
    if not name.strip("-.") or len(name) > _LONGEST_NAME:
        raise ArgumentError(f"{where}: `name` must have 1 to {_LONGEST_NAME} letters, digits, - or .; set another.")
    if name.lower() in RESERVED_NAMES or name.lower().endswith("_stderr"):
        raise ArgumentError(
            f"{where}: a judge must not be called {name}: gpt_score_{name} is the name of another result. "
            "Set another `name`."
        )
    return name


def _base_url(given: Any, where: str) -> str | None:
    """The value is not repeated in errors: it may hold a password."""
    if given is None:
        return None
    try:
        parts = urlsplit(given if isinstance(given, str) else "")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half an IPv6 address, a port of letters
        usable = False
    if not usable or not given.isprintable() or " " in given:
        raise ArgumentError(f"{where}: base_url must begin with http:// or https:// and name a host.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ArgumentError(f"{where}: base_url must hold no user, password or query. See api_key_env.")
    return given


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ArgumentError(f"{where}: structured must be true or false, got {short_value(value)}.")
    return value


def _price(price: Any, where: str) -> Price | None:
    if not isinstance(price, dict):
        raise ArgumentError(f"{where}: price must be {{input: ..., output: ...}}, US dollars per million tokens.")
    refuse_unknown(price, {"input", "output"}, f"{where}: price")
    if price.get("input") is None or price.get("output") is None:
        return None
    return Price(*(_number(price[name], 0, f"{where}: price, {name}") for name in ("input", "output")))


def _number(value: Any, least: float, where: str, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ArgumentError(
            f"{where} must be a number of at least {least:g}, at most {most:g}, got {short_value(value)}."
        )
    return value


def refuse_unknown(given: Mapping[Any, Any], allowed: set[str], where: str) -> None:
    """Raises ArgumentError for an entry that is not allowed, with its near match."""
    for name in given:
        if name not in allowed:
            name = str(name)[:40] if isinstance(name, str | int | float) else short_value(name)
            hint = did_you_mean(name, allowed)
            key = " Keys come from the environment: name the variable in api_key_env." if name == "api_key" else ""
            raise ArgumentError(f"{where}: unknown entry {name}; there are {', '.join(sorted(allowed))}.{hint}{key}")
