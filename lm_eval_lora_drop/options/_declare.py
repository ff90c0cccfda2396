"""What a declaration of an option is, and what comes from one: parsing, rules in words, near matches, defaults."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta, inspect

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.text import did_you_mean, quoted, shown

_MOST = 10**15 - 1
Natural = Annotated[int, Meta(ge=0, le=_MOST)]
Positive = Annotated[int, Meta(ge=1, le=_MOST)]
AtLeast0 = Annotated[float, Meta(ge=0, le=1e9)]
Above0 = Annotated[float, Meta(gt=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Text = Annotated[str, Meta(pattern=r"(?s)\A(?=.*\S)[^\0]{1,4096}\Z")]


@dataclass(frozen=True)
class Reads:
    """Beside a type: `read` makes the value from what is `given` in place of the type's own rules, `values` is the rule
    in words; `words` stand for values (`auto` for None)."""

    read: Callable[[Any], Any] | None = None
    values: str = ""
    words: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """A declaration as it is used: `kind` is the type with its range, `unset` says what no value means, `also` are
    other words of ours for the option; a `neutral` option changes no answer."""

    name: str
    kind: Any
    default: Any
    sentence: str
    example: str = ""
    unset: str = ""
    neutral: bool = False
    also: tuple[str, ...] = ()

    @functools.cached_property
    def reads(self) -> Reads:
        """How its text is read."""
        return next((one for one in getattr(self.kind, "__metadata__", ()) if isinstance(one, Reads)), Reads())

    @property
    def rule(self) -> str:
        """What is allowed, as it stands after "must be"."""
        words = ", ".join(dict.fromkeys(shown(word).lower() for word in self.reads.words))
        return " or ".join(filter(None, [self.reads.values or _rule(inspect.type_info(self.kind)), words]))

    @property
    def shown_default(self) -> str:
        """For tables and `--help`."""
        if self.default is MISSING:
            return "required"
        if self.unset or self.default in (None, (), {}):
            return self.unset
        if isinstance(self.default, tuple):
            return ", ".join(map(str, self.default))
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    def value(self, given: Any) -> Any:
        """What was meant by `given`.

        Raises:
            ArgumentError: it is not allowed.
        """
        if isinstance(given, str | bool) and given in self.reads.words:
            return self.reads.words[given]
        if self.reads.read is not None:
            return self.reads.read(given)
        # The harness and YAML make numbers of texts that look like one.
        for attempt in (given, shown(given)) if type(given) in (int, float) else (given,):
            try:
                return msgspec.convert(attempt, self.kind, strict=False)
            except (msgspec.ValidationError, RecursionError, UnicodeEncodeError):  # the last: half a character
                continue
        info = inspect.type_info(self.kind)
        words = [str(word) for word in info.values] if isinstance(info, inspect.LiteralType) else []
        example = f"Example: {self.name}={self.example}." if self.example else ""
        raise ArgumentError(
            f"{self.name} must be {self.rule}, got {quoted(given)}."
            + did_you_mean(given, words, option=self.name, otherwise=example)
        )


def option(default: Any, sentence: str, example: str = "", unset: str = "", **more: Any) -> Any:
    """The declaration behind a field of a dataclass; see `Option`."""
    metadata = {"option": {"sentence": sentence, "example": example, "unset": unset, **more}}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@functools.cache
def declared(*tables: type) -> dict[str, Option]:
    """The options of the dataclasses, by name, in the order they stand in."""
    found = {}
    for table in tables:
        kinds = get_type_hints(table, include_extras=True)
        for one in dataclasses.fields(table):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            found[one.name] = Option(one.name, kinds[one.name], default, **one.metadata["option"])
    return found


def read(given: Mapping[Any, Any], *tables: type, where: str = "", inside: str = "") -> dict[str, Any]:
    """The values of the options that were given. `where` is the file and `inside` the place in it, for messages.

    Raises:
        ArgumentError: no such option, a value that is not allowed, or a required option that is missing.
    """
    known, found = declared(*tables), {}
    before = f"{where}: " if where else ""
    place = f"{inside}." if inside else ""
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"There are: {', '.join(known)}.")
            raise ArgumentError(f"{before}there is no option {place}{shown(name)}.{hint}")
        if value is None and known[name].default in (None, (), {}):
            continue
        try:
            found[name] = known[name].value(value)
        except ArgumentError as error:
            raise ArgumentError(f"{before}{place}{error}") from None
    for name, one in known.items():
        if one.default is MISSING and name not in found:
            raise ArgumentError(f"{before}{place}{name} is missing: {one.sentence}. Example: {name}: {one.example}")
    return found


def _rule(info: inspect.Type) -> str:
    match info:
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=least):
            return f"an integer of at least {least}"
        case inspect.FloatType(gt=above, ge=least, lt=below):
            low = f"above {above:g}" if above is not None else f"of at least {least:g}"
            return f"a number {low}" + (f" and below {below:g}" if below is not None else "")
        case inspect.UnionType(types=types):
            return " or ".join(_rule(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.DictType():
            return "a mapping whose keys are texts"
        case inspect.VarTupleType(item_type=each, min_length=least):
            return f"a {'non-empty ' if least else ''}list, each {_rule(each)}"
    return "a text"


def text(name: str, value: Any) -> str:
    """A text that is not empty.

    Raises:
        ArgumentError: it is empty, or no text.
    """
    return str(Option(name, Text, None, "").value(value))


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts or numbers, or one of them.

    Raises:
        ArgumentError: something else.
    """
    given = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in given):
        raise ArgumentError(f"a list of texts or numbers is wanted, got {shown(value)}.")
    return tuple(shown(one, 4096) for one in given)
