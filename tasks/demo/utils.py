"""Grade-school word problems from a seed: the documents of `lora_drop_demo`.

A problem is a kind (`tickets`), its numbers, and one of the kind's wordings. Which split it may enter is a matter of
kind and numbers alone (`split_of`), so that the same problem never appears in two splits, not even in other words or
with other names.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

import datasets

# fmt: off
NAMES = [
    "Ada", "Amir", "Bea", "Carlos", "Chen", "Dora", "Elif", "Emil", "Farah", "Goran", "Hana", "Ines", "Ivo",
    "Jonas", "Kofi", "Lea", "Lin", "Malik", "Nora", "Olga", "Pavel", "Priya", "Ravi", "Sofia", "Tariq", "Tomas",
    "Uma", "Vera", "Wanda", "Yuki",
]
THINGS = [
    "apples", "badges", "beads", "buttons", "candles", "cookies", "flowers", "keys", "lemons", "magnets",
    "muffins", "pears", "pencils", "stones", "tiles",
]
# fmt: on
SPLITS = ("train", "validation", "test")


class Problem(NamedTuple):
    """One drawn problem: its numbers, the ways to ask it, and the worked answer."""

    numbers: tuple[int, ...]
    wordings: tuple[str, ...]
    steps: str
    answer: int


def _saving(rng: random.Random) -> Problem:
    who = rng.choice(NAMES)
    weekly, weeks = rng.randint(4, 15), rng.randint(2, 9)
    saved = weekly * weeks
    price = rng.randint(3, saved - 2)
    left = saved - price
    return Problem(
        (weekly, weeks, price),
        (
            f"{who} saves {weekly} dollars every week. After {weeks} weeks {who} buys a lamp for {price} dollars. "
            "How many dollars are left?",
            f"A lamp costs {price} dollars. {who} puts aside {weekly} dollars a week for {weeks} weeks and then buys "
            f"the lamp. How many dollars does {who} still have?",
        ),
        f"{weekly} * {weeks} = {saved}. {saved} - {price} = {left}.",
        left,
    )


def _bus(rng: random.Random) -> Problem:
    start, off, on = rng.randint(20, 79), rng.randint(3, 18), rng.randint(4, 29)
    stayed = start - off
    return Problem(
        (start, off, on),
        (
            f"A bus sets out with {start} passengers. At the first stop {off} get off and {on} get on. "
            "How many passengers are on the bus now?",
            f"There are {start} people on a bus. {on} people get on at the next stop, after {off} others have got "
            "off. How many people does the bus carry then?",
        ),
        f"{start} - {off} = {stayed}. {stayed} + {on} = {stayed + on}.",
        stayed + on,
    )


def _bakery(rng: random.Random) -> Problem:
    trays, each = rng.randint(3, 9), rng.randint(6, 20)
    baked = trays * each
    sold = rng.randint(5, baked - 4)
    return Problem(
        (trays, each, sold),
        (
            f"A baker fills {trays} trays with {each} rolls each and sells {sold} rolls. How many rolls remain?",
            f"Of the rolls on {trays} trays, {each} on each tray, {sold} are sold. How many rolls are not sold?",
        ),
        f"{trays} * {each} = {baked}. {baked} - {sold} = {baked - sold}.",
        baked - sold,
    )


def _fence(rng: random.Random) -> Problem:
    width = rng.randint(7, 48)
    length = width + rng.randint(1, 40)
    half = length + width
    return Problem(
        (length, width),
        (
            f"A garden is {length} metres long and {width} metres wide. How many metres of fence go around it?",
            f"How many metres does one walk around a yard of {length} by {width} metres?",
        ),
        f"{length} + {width} = {half}. 2 * {half} = {2 * half}.",
        2 * half,
    )


def _book(rng: random.Random) -> Problem:
    who = rng.choice(NAMES)
    first, second = rng.randint(8, 49), rng.randint(8, 49)
    read = first + second
    pages = read + rng.randint(6, 90)
    return Problem(
        (pages, first, second),
        (
            f"A book has {pages} pages. {who} reads {first} pages on Monday and {second} pages on Tuesday. "
            "How many pages are left to read?",
            f"{who} has read {first} pages of a book and then reads {second} more. The book has {pages} pages. "
            "How many are still unread?",
        ),
        f"{first} + {second} = {read}. {pages} - {read} = {pages - read}.",
        pages - read,
    )


def _times_as_many(rng: random.Random) -> Problem:
    (one, other), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    few, times = rng.randint(4, 99), rng.randint(2, 6)
    many = few * times
    return Problem(
        (few, times),
        (
            f"{one} has {few} {thing}. {other} has {times} times as many. How many {thing} do the two have in all?",
            f"{other} owns {times} times as many {thing} as {one}, who owns {few}. How many {thing} is that for both?",
        ),
        f"{times} * {few} = {many}. {few} + {many} = {few + many}.",
        few + many,
    )


def _bags(rng: random.Random) -> Problem:
    who, thing = rng.choice(NAMES), rng.choice(THINGS)
    bags, each = rng.randint(2, 6), rng.randint(4, 20)
    total = bags * each
    had = rng.randint(3, total - 3)
    return Problem(
        (had, total - had, bags),
        (
            f"{who} has {had} {thing}, gets {total - had} more and packs all of them evenly into {bags} bags. "
            f"How many {thing} go into each bag?",
            f"{had} {thing} from one box and {total - had} from another are split evenly over {bags} bags. "
            "How many does each bag hold?",
        ),
        f"{had} + {total - had} = {total}. {total} / {bags} = {each}.",
        each,
    )


def _tickets(rng: random.Random) -> Problem:
    adult, child = rng.randint(8, 15), rng.randint(2, 6)
    adults, children = rng.randint(2, 6), rng.randint(2, 8)
    pay_adults, pay_children = adults * adult, children * child
    return Problem(
        (adult, child, adults, children),
        (
            f"A zoo ticket costs {adult} dollars for adults and {child} dollars for children. "
            f"How many dollars do {adults} adults and {children} children pay?",
            f"{adults} adults and {children} children visit a museum. Adults pay {adult} dollars each and children "
            f"{child} dollars each. How many dollars is that together?",
        ),
        f"{adults} * {adult} = {pay_adults}. {children} * {child} = {pay_children}. "
        f"{pay_adults} + {pay_children} = {pay_adults + pay_children}.",
        pay_adults + pay_children,
    )


def _ages(rng: random.Random) -> Problem:
    one, other = rng.sample(NAMES, 2)
    age, younger = rng.randint(24, 78), rng.randint(2, 19)
    return Problem(
        (age, younger),
        (
            f"{one} is {age} years old and {other} is {younger} years younger. What is the sum of their ages?",
            f"{other} is {younger} years younger than {one}, who is {age}. How old are they together?",
        ),
        f"{age} - {younger} = {age - younger}. {age} + {age - younger} = {2 * age - younger}.",
        2 * age - younger,
    )


def _hens(rng: random.Random) -> Problem:
    half, bought = rng.randint(11, 95), rng.randint(5, 60)
    return Problem(
        (2 * half, bought),
        (
            f"A farm has {2 * half} hens. Half of them are sold and {bought} new hens are bought. "
            "How many hens are there now?",
            f"A farmer buys {bought} hens after selling half of the {2 * half} hens that were on the farm. "
            "How many hens does the farmer have in the end?",
        ),
        f"{2 * half} / 2 = {half}. {half} + {bought} = {half + bought}.",
        half + bought,
    )


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "ages": _ages,
    "bags": _bags,
    "bakery": _bakery,
    "book": _book,
    "bus": _bus,
    "fence": _fence,
    "hens": _hens,
    "saving": _saving,
    "tickets": _tickets,
    "times_as_many": _times_as_many,
}


def split_of(kind: str, numbers: tuple[int, ...]) -> str:
    """The only split that a problem of this kind with these numbers may enter: 6 in 8 train, 1 validation, 1 test."""
    # Not hash(): it differs from process to process.
    bucket = hashlib.sha256(f"{kind} {numbers}".encode()).digest()[0] % 8
    return {0: "test", 1: "validation"}.get(bucket, "train")


def generate(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """`size` different problems of a split, the kinds taking turns, drawn from `seed`.

    Each document has `kind`, `question`, `steps` (the worked answer) and `answer` (the number, as text). No two have
    the same kind and numbers. A longer list begins with the shorter one.

    Raises:
        ValueError: an unknown split, or more problems than the kinds' ranges of numbers hold.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
    rng = random.Random(f"{seed} {split}")
    documents: list[dict[str, str]] = []
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for kind in itertools.islice(itertools.cycle(KINDS), size):
        problem = _draw_new(rng, kind, split, seen)
        seen.add((kind, problem.numbers))
        documents.append(
            {
                "kind": kind,
                "question": rng.choice(problem.wordings),
                "steps": problem.steps,
                "answer": str(problem.answer),
            }
        )
    return documents


def _draw_new(rng: random.Random, kind: str, split: str, seen: set[tuple[str, tuple[int, ...]]]) -> Problem:
    for _ in range(100_000):
        problem = KINDS[kind](rng)
        if split_of(kind, problem.numbers) == split and (kind, problem.numbers) not in seen:
            return problem
    raise ValueError(f"no new problem of kind {kind!r} found for {split}: ask for fewer documents, here {len(seen)}.")


def load_dataset(
    data_seed: int = 0,
    train_documents: int = 3200,
    validation_documents: int = 200,
    test_documents: int = 100,
    **_: object,
) -> dict[str, datasets.Dataset]:
    """The three splits; called by lm-eval with the task's `metadata`, of which the other entries are none of ours."""
    sizes = dict(zip(SPLITS, (train_documents, validation_documents, test_documents), strict=True))
    return {split: datasets.Dataset.from_list(generate(split, size, data_seed)) for split, size in sizes.items()}
