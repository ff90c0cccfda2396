"""Keeps `--use_cache` honest: one answer file belongs to one setting.

The harness keys an answer by request type and arguments only (lm_eval/api/model.py, `hash_args`), so two boundaries, or
two adapters, that share a file would share answers. The guard writes the setting into the file and refuses one that was
written under another; and it keeps the boundaries that were found, so that a run whose answers all come from the file
still knows them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from lm_eval_lora_drop.errors import ArgumentError
from lm_eval_lora_drop.record.schema import TaskRecord, as_json, read_task

KEY = "lm_eval_lora_drop"


class CacheGuard:
    """The entry of ours in one answer file.

    Raises:
        ArgumentError: the file was written under another setting, or by a model type that leaves no setting.
    """

    def __init__(self, answers: MutableMapping[str, Any], setting: Mapping[str, Any], file: str) -> None:
        self.answers = answers
        # As it comes back from the file: tuples are lists there.
        self.setting = json.loads(json.dumps(dict(setting), default=str))
        self._file = file
        way_out = "Answers would be mixed up: give --use_cache another path for this run, or delete the file."
        stored = answers.get(KEY)
        if stored is None:
            if len(answers) > 0:
                raise ArgumentError(
                    f"--use_cache: {file} holds answers of a model that kept no record of its boundary (--model hf, "
                    f"for example). {way_out}"
                )
            self._store({})
            return
        before = json.loads(stored)["setting"]
        differing = sorted(name for name in {*before, *setting} if before.get(name) != self.setting.get(name))
        if differing:
            changes = "; ".join(f"{name} was {before.get(name)}, now {self.setting.get(name)}" for name in differing)
            raise ArgumentError(f"--use_cache: {file} was written under another setting ({changes}). {way_out}")

    def recall(self, fingerprint: str) -> TaskRecord | None:
        """The decision that was recorded for exactly this task, model and validation documents, if any."""
        entry = json.loads(self.answers[KEY])["tasks"].get(fingerprint)
        if entry is None:
            return None
        return replace(read_task(entry, self._file, f"tasks.{fingerprint}"), from_answer_cache=True)

    def remember(self, record: TaskRecord) -> None:
        """Keep a decision."""
        tasks = json.loads(self.answers[KEY])["tasks"]
        tasks[record.fingerprint] = as_json(record)
        self._store(tasks)

    def _store(self, tasks: Mapping[str, Any]) -> None:
        # JSON text, so that nothing of ours has to be unpickled when the file is read again.
        self.answers[KEY] = json.dumps({"setting": self.setting, "tasks": tasks}, ensure_ascii=False)
