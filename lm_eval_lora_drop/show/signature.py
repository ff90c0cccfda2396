"""The settings of a run of a task in one line to copy, as sacrebleu has: everything that moves its score."""

from __future__ import annotations

import re
from typing import Any

from lm_eval_lora_drop.record.runs import TaskRun
from lm_eval_lora_drop.text import visible

_SHOWN = 8
"""Characters of a digest."""


def signature(task: TaskRun) -> str:
    """`adapter:1a2b3c4d|K:24|by:sweep|...|task:gsm8k|version:3.0|n:100|...|v:0.1.0`; what a file does not say is left
    out."""
    run, record, kept = task.run, task.run.record, task.record
    parts: list[tuple[str, Any]] = [("model", run.system)]
    if record is not None and kept is not None:
        variant = [("kept", kept.variant)] if kept.boundary is None or kept.kept.adapter else [("K", kept.boundary)]
        parts = [
            ("adapter", _digest(record.adapter.fingerprint)),
            *variant,
            ("by", kept.sweep.select if kept.sweep else kept.method),
            ("base", _digest(record.base.fingerprint)),
            ("dtype", record.dtype),
        ]
    parts += [
        ("task", task.name),
        ("version", task.version),
        ("n", task.documents_evaluated),
        ("fewshot", task.num_fewshot),
        ("chat", "yes" if run.data.get("chat_template") else None),
        ("system", _digest(str(run.data.get("system_instruction_sha") or ""))),
        ("gen", run.config.get("gen_kwargs")),
        ("seed", run.config.get("random_seed")),
        ("lm-eval", run.lm_eval_version),
        ("v", record.version if record else None),
    ]
    return "|".join(f"{name}:{_plain(value)}" for name, value in parts if value not in (None, "", {}))


def _digest(text: str) -> str:
    return text.removeprefix("sha256:")[:_SHOWN]


def _plain(value: Any) -> str:
    """Without what separates parts, breaks a line or ends a code span."""
    return re.sub(r"[|`\s]+", "_", visible(str(value)))
