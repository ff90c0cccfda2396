"""Panel files: which judges are asked, how, at what price and under which limits. Keys come from the environment.

Each entry of a file is declared once, as a field of `Judge` or `Panel` (`options.option`). Where a key may stand in the
wrong place (an address, an option, the name of a variable) an error does not repeat the value.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.files import package_folder, read_yaml, user_path
from lm_eval_lora_drop.judge.known_providers import PROVIDERS, provider_spec
from lm_eval_lora_drop.judge.redact import Redactor, checked_options, checked_variable, sent_blocks, variable_in
from lm_eval_lora_drop.options import AtLeast0, Reads, option, read
from lm_eval_lora_drop.text import did_you_mean, shown

ENVIRONMENT = "LORA_DROP_JUDGES"
RESERVED_NAMES = frozenset(("stderr", "verdicts", "agreement", "panel"))
"""What results are called beside the judges' own: `gpt_score_stderr` is no judge's score."""
_LONGEST_NAME = 60
_LONGEST_CRITERION = 500
_MOST_CRITERIA = 20


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: AtLeast0 | None = option(None, "per million input tokens", "0.25", "unknown")
    output: AtLeast0 | None = option(None, "per million output tokens", "2", "unknown")

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars for one call."""
        return (input_tokens * (self.input or 0.0) + output_tokens * (self.output or 0.0)) / 1e6


def _provider(given: Any) -> str:
    provider_spec(given)
    return str(given)


def _price(given: Any) -> Price | None:
    """None where one of the two is empty, as in the panels that ship."""
    if not isinstance(given, dict):
        raise ArgumentError("price must be {input: ..., output: ...}, US dollars per million tokens.")
    found = Price(**read(given, Price, inside="price"))
    return None if found.input is None or found.output is None else found


def _base_url(given: Any) -> str:
    """The value is not repeated in errors: it may hold a password."""
    try:
        parts = urlsplit(given if isinstance(given, str) else "")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # half an IPv6 address, a port of letters
        usable = False
    if not usable or not given.isprintable() or " " in given:
        raise ArgumentError("base_url must begin with http:// or https:// and name a host.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ArgumentError("base_url must hold no user, password or query. See api_key_env.")
    return str(given)


def _name(given: Any) -> str:
    """The name under which results are told; it becomes part of `gpt_score_<name>`."""
    name = re.sub(r"[^\w.-]+", "-", str(given)) if isinstance(given, str | int) else ""
    if not name.strip("-.") or len(name) > _LONGEST_NAME:
        raise ArgumentError(f"name must have 1 to {_LONGEST_NAME} letters, digits, - or .; got {shown(given)}.")
    if name.lower() in RESERVED_NAMES or name.lower().endswith("_stderr"):
        raise ArgumentError(
            f"a judge must not have the name {name}: gpt_score_{name} names another result. Set another `name`."
        )
    return name


def _limits(given: Any) -> dict[str, int]:
    if not isinstance(given, dict):
        raise ArgumentError("concurrency must map providers to numbers, e.g. {openai: 8}.")
    for name, value in given.items():
        if name not in PROVIDERS:
            raise ArgumentError(f"concurrency: no provider {shown(name)}.{did_you_mean(name, PROVIDERS)}")
        if type(value) is not int or not 1 <= value <= 1000:
            raise ArgumentError(f"concurrency of {name} must be an integer from 1 to 1000, got {shown(value)}.")
    return dict(given)


def _criteria(given: Any) -> dict[str, str]:
    short = isinstance(given, dict) and len(given) <= _MOST_CRITERIA
    if not short or not all(
        isinstance(name, str)
        and re.fullmatch(r"[A-Za-z][\w -]{0,39}", name)
        and isinstance(text, str)
        and text.strip()
        and len(text) <= _LONGEST_CRITERION
        and text.isprintable()
        for name, text in given.items()
    ):
        raise ArgumentError(
            f"criteria must map at most {_MOST_CRITERIA} names to one sentence each of at most {_LONGEST_CRITERION} "
            "characters, e.g. {fluency: 'reads well'}."
        )
    return dict(given)


def _judges(given: Any) -> tuple[Judge, ...]:
    if not isinstance(given, list) or not given:
        raise ArgumentError("a panel file needs a list `judges` with at least one entry.")
    found = []
    for number, entry in enumerate(given, 1):
        if not isinstance(entry, dict):
            raise ArgumentError(f"judge {number} must be a mapping with at least `provider` and `model`.")
        values = read(entry, Judge, inside=f"judges[{number}]")
        unset = {"name": _name(values["model"][-_LONGEST_NAME:]), "structured": values["provider"] != "hf"}
        found.append(Judge(**{**unset, **values}))
    names = [judge.name for judge in found]
    if len(set(names)) < len(names):
        raise ArgumentError(f"every judge needs a name of its own; got {', '.join(names)}. Set `name`.")
    return tuple(found)


Criteria = Annotated[dict[str, str], Reads(_criteria, "names with one sentence each")]


@dataclass(frozen=True)
class Judge:
    """One model of a panel, and how it is asked."""

    provider: Annotated[str, Reads(_provider, "a provider")] = option(MISSING, "whose interface it has", "openai")
    model: Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,500}\Z")] = option(MISSING, "the model's name", "gpt-4o")
    name: Annotated[str, Reads(_name, "a name")] = option("", "part of `gpt_score_<name>`", "gpt", "the model's")
    base_url: Annotated[str | None, Reads(_base_url, "an address")] = option(
        None, "a server of your own", "http://localhost:8000/v1", "the provider's"
    )
    api_key_env: Annotated[str | None, Reads(checked_variable, "an environment variable")] = option(
        None, "the variable that holds the key", "MY_KEY", "the provider's; none for a server of your own"
    )
    options: Annotated[Mapping[str, Any], Reads(checked_options, "a mapping")] = option(
        {}, "added to the SDK's request as they are", "{temperature: 0}", "none"
    )
    structured: bool = option(True, "ask for JSON under a schema", "false", "true; for hf false")
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = option(
        0, "for thoughts and answer", "4096", "the provider's"
    )
    price: Annotated[Price | None, Reads(_price, "a mapping")] = option(
        None, "US dollars per million tokens", "{input: 0.25, output: 2}", "unknown"
    )

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

    judges: Annotated[tuple[Judge, ...], Reads(_judges, "a list of judges")] = option(MISSING, "the models", "[...]")
    max_spend: AtLeast0 | None = option(None, "most US dollars, earlier runs included", "5", "no limit")
    concurrency: Annotated[Mapping[str, int], Reads(_limits, "a mapping")] = option(
        {}, "simultaneous calls per server", "{openai: 8}", "4"
    )
    attempts: Annotated[int, Meta(ge=1, le=100)] = option(6, "calls per question at the most", "6")
    backoff: Annotated[float, Meta(ge=0, le=3600)] = option(1.0, "seconds before the second attempt", "1")
    max_wait: Annotated[float, Meta(ge=0, le=86400)] = option(120.0, "longest wait between two attempts", "120")
    timeout: Annotated[float, Meta(ge=0.001, le=86400)] = option(60.0, "of one call", "60")
    samples: Annotated[int, Meta(ge=1, le=100)] = option(1, "answers per judge that are averaged", "4")
    criteria: Criteria = option({}, "what judges are to look at", "{fluency: reads well}", "none")
    source: str = option("", "the file", neutral=True)

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


def load_panel(path: str | Path) -> Panel:
    """The panel of a YAML file, or of one that ships with the package by its bare name (`current`, `paper`).

    Raises:
        ArgumentError: no such file, or something in it that cannot be used.
    """
    shipped = package_folder("configs") / "judges"
    names = sorted(found.stem for found in shipped.glob("*.yaml"))
    try:
        file = user_path(path, "a panel")
        if not file.is_file() and str(path) in names:
            file = shipped / f"{path}.yaml"
        there = file.is_file()  # not a device or a pipe, which may never end
    except (TypeError, OSError, ValueError, ArgumentError):  # no path, too long, ~nobody, a NUL
        there = False
    if not there:
        raise ArgumentError(
            f"{shown(path, 200)!r} is not a panel file. Give a YAML file, or the name of an included one: "
            f"{', '.join(names)}."
        )
    try:
        data = read_yaml(file, "a panel of judges, YAML")
    except ArgumentError as error:
        # A parser's message may quote the line, and with it whatever was wrongly written there.
        raise ArgumentError(f"{file}: cannot be read as YAML ({type(error.__cause__ or error).__name__}).") from None
    return parse_panel(data, str(file))


def panel_from(metadata: Mapping[str, Any] | None = None) -> Panel | None:
    """The panel that `--metadata '{"judges": ...}'` or else the environment variable LORA_DROP_JUDGES names, if any."""
    named = (metadata or {}).get("judges") or os.environ.get(ENVIRONMENT)
    return load_panel(named) if named else None


def parse_panel(data: Any, source: str) -> Panel:
    """The panel that a file's content describes.

    Raises:
        ArgumentError: an unknown entry, a wrong type, two judges of one name, a key written into the file.
    """
    given = {name: value for name, value in data.items() if name != "source"} if isinstance(data, dict) else {}
    if not given.get("judges"):
        raise ArgumentError(f"{source}: a panel file needs a list `judges` with at least one entry.")
    panel = Panel(**read(given, Panel, where=source), source=source)
    for judge in panel.judges if panel.samples > 1 else ():
        if judge.options.get("temperature", 0 if judge.provider == "hf" else 1) == 0:
            raise ArgumentError(
                f"{source}: samples: {panel.samples} has no effect at temperature 0, where every answer is the same. "
                f"Set the temperature of judge {judge.name} to 1, or remove samples."
            )
    return panel
