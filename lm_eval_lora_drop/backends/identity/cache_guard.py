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
from lm_eval_lora_drop.record.fingerprint import differences, library_versions, version_changes
from lm_eval_lora_drop.record.schema import TaskRecord, as_json, read_task
from lm_eval_lora_drop.text import logger

KEY = "lm_eval_lora_drop"
_WAY_OUT = "Answers would be mixed up: give --use_cache another path for this run, or delete the file."
log = logger(__name__)


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
        self._versions = library_versions()
        stored = answers.get(KEY)
        if stored is None:
            if len(answers) > 0:
                raise ArgumentError(
                    f"--use_cache: {file} holds answers of a model that kept no record of its boundary (--model hf, "
                    f"for example). {_WAY_OUT}"
                )
            self._store({})
            return
        entry = json.loads(stored)
        changes = [f"{name} was {then}, now {now}" for name, then, now in differences(entry["setting"], self.setting)]
        warned, refused = version_changes(entry["versions"], self._versions)
        if changes or refused:
            raise ArgumentError(
                f"--use_cache: {file} was written under another setting ({'; '.join([*changes, *refused])}). {_WAY_OUT}"
            )
        if warned:
            log.warning(
                "--use_cache: the answers in %s were given by other releases (%s) and are reused. They may differ "
                "at near ties; give --use_cache another path to ask again.",
                file,
                "; ".join(warned),
            )
        self._versions = entry["versions"]

    def recall(self, fingerprint: str) -> TaskRecord | None:
        """The decision that was recorded for exactly this task, model and validation documents, if any."""
        entry = json.loads(self.answers[KEY])["tasks"].get(fingerprint)
        if entry is None:
            return None
        return replace(read_task(entry["record"], self._file, f"tasks.{fingerprint}.record"), from_answer_cache=True)

    def remember(self, task: str, record: TaskRecord) -> None:
        """Keep the decision for a task.

        Raises:
            ArgumentError: the file holds answers of this task under another variant, because its validation documents
                were other ones then.
        """
        tasks = json.loads(self.answers[KEY])["tasks"]
        for entry in tasks.values():
            if entry["task"] == task and entry["record"]["variant"] != record.variant:
                before = entry["record"]["variant"]
                raise ArgumentError(
                    f"--use_cache: {self._file} holds answers of {task} under the variant {before}, and "
                    f"now {record.variant} was chosen: its validation documents or its metric have changed. {_WAY_OUT}"
                )
        tasks[record.fingerprint] = {"task": task, "record": as_json(record)}
        self._store(tasks)

    def _store(self, tasks: Mapping[str, Any]) -> None:
        # JSON text, so that nothing of ours has to be unpickled when the file is read again.
        self.answers[KEY] = json.dumps(
            {"setting": self.setting, "versions": self._versions, "tasks": tasks}, ensure_ascii=False
        )
