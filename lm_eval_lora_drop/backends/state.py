"""What a model knows of the evaluation that is going on: its decisions, and the answer cache it works with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lm_eval_lora_drop.backends.evaluated import EvaluatedSplit
from lm_eval_lora_drop.backends.identity.cache_guard import CacheGuard
from lm_eval_lora_drop.harness.documents import Binding
from lm_eval_lora_drop.record.schema import TaskRecord
from lm_eval_lora_drop.sweep.documents import RequestBindings
from lm_eval_lora_drop.variant import Variant


@dataclass(frozen=True)
class Decision:
    """What a task is answered with. `binding` and `record` are None for requests that were made by hand."""

    kept: Variant
    binding: Binding | None = None
    record: TaskRecord | None = None


@dataclass
class RunState:
    """One model may be evaluated several times: `decisions` are those of the run going on, or of the last one, and
    `splits` the test splits that are answered under other variants too."""

    decisions: dict[str, Decision] = field(default_factory=dict)
    answers: CacheGuard | None = None
    bindings: RequestBindings = field(default_factory=RequestBindings)
    splits: dict[str, EvaluatedSplit] = field(default_factory=dict)
    _known: dict[str, Decision] = field(default_factory=dict)
    _reported: bool = False

    def known(self, binding: Binding) -> Decision | None:
        """The decision for exactly this task of this evaluation, taken before."""
        found = self._known.get(binding.name)
        return found if found is not None and found.binding is binding else None

    def decided(self, binding: Binding, decision: Decision) -> None:
        """From here on the task is answered with this. The first decision after a report begins a new run."""
        if self._reported:
            self.decisions, self.splits, self._reported = {}, {}, False
        self._known[binding.name] = self.decisions[binding.name] = decision

    def report(self, *, saves_samples: bool) -> dict[str, TaskRecord]:
        """The records of the run, which is over with that."""
        self._reported = True
        records = {name: one.record for name, one in self.decisions.items() if one.record is not None}
        for name, split in self.splits.items():
            evaluated = split.record(saves_samples=saves_samples)
            warnings = records[name].warnings + ((split.problem,) if split.problem else ())
            records[name] = replace(records[name], evaluated=evaluated, warnings=warnings)
        return records
