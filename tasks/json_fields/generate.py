"""Makes the documents of `lora_drop_json`: short order messages and the fields that stand in them.

Seeded and without a download. Every split has its own family names, and every text holds one, so no text can be in
two splits. `python tasks/json_fields/generate.py` prints the first documents of each split.
"""

from __future__ import annotations

import json
import random
from datetime import date, timedelta
from typing import Any

SEED = 0
SIZES = {"train": 2000, "validation": 200, "test": 500}

FAMILY_NAMES = {
    "train": "Abiola Berger Castro Dubois Eriksen Farkas Gallo Hansen Ito Jansen Kowalski Lindgren Moreno Novak Okafor "
    "Petrov Quintero Rossi Silva Tanaka",
    "validation": "Adeyemi Bianchi Cohen Duarte Fischer Haddad Keller Larsen Mendes Nilsson",
    "test": "Andrade Bauer Chen Demir Fontana Gomez Horvat Ivanova Kaya Laurent Mazur Olsen Pereira Sato Weber",
}
GIVEN_NAMES = (
    "Amara Boris Clara Dario Elif Farid Greta Hugo Ines Jonas Karin Leo Mina Nadia Omar Paula Rosa Tomas Yuki Zoe"
)
CITIES = (
    "Antwerp Bergen Cordoba Dresden Edmonton Florence Geneva Hobart Izmir Krakow Lisbon Nagoya Ottawa Porto Utrecht"
)
# Not from `calendar`, which follows the locale.
MONTHS = "January February March April May June July August September October November December"
ITEMS = (
    "copper kettle, desk lamp, wool blanket, bread knife, garden chair, bicycle pump, paper lantern, rain jacket, "
    "chess set, cast-iron pan, wall clock, yoga mat, travel mug, bookshelf, tool box"
)
TEMPLATES = {
    True: (
        "Hello, {name} here. I would like {quantity} of the {item}, sent by express to {city}, to arrive on {spoken}.",
        "Order from {name}: {item}, {quantity} pieces. It is urgent: express delivery to {city} on {spoken}.",
        "{name} in {city} called and wants {quantity} x {item} by {spoken}. Express shipping was paid.",
    ),
    False: (
        "Hello, {name} here. I would like {quantity} of the {item}, sent to {city} for {spoken}. Normal post is fine.",
        "Order from {name}: {item}, {quantity} pieces, to {city} on {spoken}. No hurry, the normal delivery will do.",
        "{name} in {city} called and wants {quantity} x {item} by {spoken}. Express shipping was declined.",
    ),
}

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "item": {"type": "string"},
        "quantity": {"type": "integer"},
        "city": {"type": "string"},
        "date": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
        "express": {"type": "boolean"},
    },
    "required": ["name", "item", "quantity", "city", "date", "express"],
    "additionalProperties": False,
}
"""What an answer must look like; the prompt says the same in words."""


def generate(split: str, seed: int = SEED) -> list[dict[str, Any]]:
    """The documents of one split: `text`, and `fields` as JSON text with the keys in the schema's order."""
    rng = random.Random(f"{seed} {split}")
    texts: dict[str, str] = {}
    while len(texts) < SIZES[split]:
        day = date(2024, 1, 1) + timedelta(days=rng.randrange(3 * 365))
        fields = {
            "name": f"{rng.choice(GIVEN_NAMES.split())} {rng.choice(FAMILY_NAMES[split].split())}",
            "item": rng.choice(ITEMS.split(", ")),
            "quantity": rng.randint(2, 40),
            "city": rng.choice(CITIES.split()),
            "date": day.isoformat(),
            "express": rng.random() < 0.5,
        }
        spoken = f"{day.day} {MONTHS.split()[day.month - 1]} {day.year}"
        text = rng.choice(TEMPLATES[bool(fields["express"])]).format(**fields, spoken=spoken)
        texts[text] = json.dumps(fields)
    return [{"text": text, "fields": fields} for text, fields in texts.items()]


if __name__ == "__main__":
    for name in SIZES:
        for document in generate(name)[:2]:
            print(f"{name}: {document['text']}\n    {document['fields']}")
