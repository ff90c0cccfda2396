"""Greedy decoding of many rows at once: rows that have generated the same share their states, finished rows leave,
waiting prompts take their place.

Two trees are at work. The *batch* holds all rows that are being decoded, for as long as they are, with keys and values
in a `RowCache`. A *prefill* holds a few prompts while they are read, with a cache of its own; what it has computed is
then copied into the batch, and it is thrown away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_lora_drop.engine.requests import Rules, StopWatch, cut, encode_prompt, warn_of_special_stop
from lm_eval_lora_drop.engine.states.branching import Branches, forward
from lm_eval_lora_drop.engine.states.cache import RowCache
from lm_eval_lora_drop.engine.states.prefix import Prefix, common_prefix, weight
from lm_eval_lora_drop.engine.states.settings import Settings
from lm_eval_lora_drop.engine.states.tree import Route, Tree
from lm_eval_lora_drop.harness.facts.batches import padded
from lm_eval_lora_drop.harness.model import HarnessModel
from lm_eval_lora_drop.variant import Variant

PREFILL_TOKENS = 4096
"""Prompt tokens times rows per prefill: enough for full speed, and intermediate results stay within a CPU's cache."""
REFILL_SHARE = 0.25
"""Under several variants waiting prompts come in together, when this share of the rows is free: a prefill of one is
slow in the low layers, where one state stands for many variants. Under one variant a prompt comes in at once."""


@dataclass(frozen=True)
class Job:
    """A prompt (its number) and the variants it is to be answered under."""

    prompt: int
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Completion:
    """An answer to a prompt (its number) under a variant: its tokens, what ended it, and its text."""

    prompt: int
    variant: Variant
    tokens: tuple[int, ...]
    ended_by: str
    text: str


@dataclass
class Group:
    """Rows of one prompt that have generated the same so far: row `rows[k]` of the batch is under `variants[k]`."""

    prompt: int
    rows: list[int]
    variants: list[Variant]
    generated: list[int]


class Decoder:
    """Answers jobs with at most `capacity` rows at a time.

    With `branches` (whose wrappers are on whenever `run` is called) the variants run together. Without, the model
    answers as it is, and each job has one variant that stands for that.
    """

    def __init__(
        self,
        lm: HarnessModel,
        prompts: Sequence[str],
        jobs: Sequence[Job],
        rules: Rules,
        branches: Branches | None,
        capacity: int,
    ) -> None:
        self._lm = lm
        self._rules = rules
        self._branches = branches
        self._settings = branches.settings if branches else Settings(jobs[0].variants[0].num_layers)
        self._watch = StopWatch(lm, rules.stops)
        self._tokens = {job.prompt: encode_prompt(lm, prompts[job.prompt], rules) for job in jobs}
        # Longest first: later ones always find room for their prompts.
        pieces = [piece for job in jobs for piece in _cut(job, capacity)]
        self._waiting = deque(sorted(pieces, key=lambda job: -len(self._tokens[job.prompt])))
        # Read before the first prompts, under all variants at once. A token of each prompt is left, for its logits.
        self._variants = list(dict.fromkeys(variant for job in jobs for variant in job.variants))
        shortest = min(map(len, self._tokens.values()), default=0) if len(self._variants) <= capacity else 0
        self._common = common_prefix(self._tokens.values(), max(0, shortest - 1))
        self._prefix: Prefix | None = None
        self._groups: list[Group] = []
        self._batch = Tree(self._settings, capacity)
        self._cache = RowCache(self._batch)
        self._refill_at = REFILL_SHARE * capacity if branches else 1
        # (capacity,) each, by row of the batch: the token generated last, and the column in which the prompt begins.
        self._newest = np.zeros(capacity, np.int64)
        self._begin = np.zeros(capacity, np.int64)
        # Of all rows in the order of the groups; None when rows have come, parted or left since.
        self._route: Route | None = None
        self._finished: list[Completion] = []
        self.most_rows = 0

    @property
    def busy(self) -> bool:
        """Whether a job is unfinished."""
        return bool(self._waiting or self._groups)

    def take(self) -> list[Completion]:
        """What has been answered since last asked."""
        finished, self._finished = self._finished, []
        return finished

    def prompt(self, number: int) -> tuple[int, ...]:
        """The tokens of a prompt."""
        return self._tokens[number]

    def unfinished(self) -> list[Job]:
        """What has not been answered yet."""
        return [Job(group.prompt, tuple(group.variants)) for group in self._groups] + list(self._waiting)

    def run(self, enough: int) -> None:
        """Go on until `enough` answers can be taken, or all."""
        while len(self._finished) < enough and self.busy:
            self._refill()
            if self._groups:
                self._step()

    def _refill(self) -> None:
        """Admit waiting jobs, from the first on, as far as there are free rows."""
        while self._waiting:
            needed = len(self._waiting[0].variants)
            if self._groups and self._batch.free < max(needed, self._refill_at):
                return
            jobs: list[Job] = []
            rows = 0
            for job in self._waiting:
                rows += len(job.variants)
                if rows > self._batch.free:
                    break
                jobs.append(job)
            self._admit(jobs)

    @torch.inference_mode()
    def _admit(self, jobs: Sequence[Job]) -> None:
        """Read prompts, longest first; their rows join the batch with their first tokens."""
        if self._common and self._prefix is None:
            self._prefix = Prefix(self._lm, self._common, self._variants, self._settings, self._branches)
        # All states end at the column `stop`, the new ones too: there must be room for the longest before it.
        self._begin += self._cache.receive(len(self._tokens[jobs[0].prompt]), first=not self._groups)
        # All rows at once, so that the buffers grow once.
        groups = [Group(job.prompt, self._batch.add(job.variants), list(job.variants), []) for job in jobs]
        self._cache.settle()
        for prefill in self._prefills(groups):
            self._read(prefill)
        self._route = None
        # From here on the groups stand for the jobs: what is asked again after an error is asked once.
        for _ in jobs:
            self._waiting.popleft()
        self._take_down(groups)

    def _prefills(self, groups: Sequence[Group]) -> Iterator[list[Group]]:
        """Groups to be read together: longest prompt x rows stays within the budget."""
        piece: list[Group] = []
        rows = 0
        for group in groups:
            rows += len(group.rows)
            longest = len(self._tokens[(piece or [group])[0].prompt])
            if piece and rows * weight(longest, len(self._common)) > PREFILL_TOKENS:
                yield piece
                piece, rows = [], len(group.rows)
            piece.append(group)
        yield piece

    def _read(self, groups: Sequence[Group]) -> None:
        """Read the prompts of these groups; their keys and values go to the batch, their next tokens to `_newest`."""
        prefill = Tree(self._settings, sum(len(group.rows) for group in groups))
        rows_of = [prefill.add(group.variants) for group in groups]
        prefill.settle()
        # The rows of all groups, in the prefill and in the batch: the k-th of one is the k-th of the other.
        in_prefill = [row for rows in rows_of for row in rows]
        in_batch = [row for group in groups for row in group.rows]
        # (rows of the prefill,): which of the groups a row belongs to.
        group_of = np.zeros(len(in_prefill), np.int64)
        group_of[in_prefill] = np.repeat(np.arange(len(groups)), [len(rows) for rows in rows_of])
        route = prefill.route(in_prefill)

        prompts = [self._tokens[group.prompt] for group in groups]
        lengths = np.array([len(tokens) for tokens in prompts])
        width = int(lengths.max())
        # (rows of the prefill,): prompts are padded on the left, so that all end in the same column.
        begins = (width - lengths)[group_of]
        cache = self._prefix.cache(prefill, begins) if self._prefix else DynamicCache()
        # The first `known` columns hold copies of the prefix. A prompt that begins in column b has the prefix in the
        # columns b to b + known, so it reads the last b tokens of it again.
        known = cache.get_seq_length()

        device = self._lm.device
        # (groups, width) -> (states of layer 0, width): one input for each, the prompt of the row that owns it.
        ids = padded(width, [torch.tensor(tokens) for tokens in prompts], "left")
        inputs = ids[torch.from_numpy(group_of[route.inputs])].to(device)
        # (states of layer 0, width): a column's position in its prompt, negative in the padding.
        positions = (torch.arange(width) - torch.from_numpy(begins[route.inputs])[:, None]).to(device)
        logits = self._forward(
            route, inputs[:, known:], (positions >= 0).long(), positions[:, known:].clamp(min=0), cache
        )
        self._cache.write(cache, prefill, in_prefill, in_batch)
        # (rows,), in the order of both lists.
        self._newest[in_batch] = logits.argmax(-1)[route.outputs.on(logits.device)].cpu().numpy()
        for group, length in zip(groups, lengths.tolist(), strict=True):
            self._begin[group.rows] = self._cache.columns.stop - length

    @torch.inference_mode()
    def _step(self) -> None:
        """One more token for every row."""
        rows = [row for group in self._groups for row in group.rows]
        if self._route is None:
            self._route = self._batch.route(rows)
            # Rows of a group begin in the same column; what lies before the earliest is of no use any more.
            self._cache.columns.start = int(self._begin[[group.rows[0] for group in self._groups]].min())
        self._begin += self._cache.make_room(0)
        route, device = self._route, self._lm.device
        start, stop = self._cache.columns.start, self._cache.columns.stop
        # (states of layer 0, 1) each: the row that owns a state says where it begins and what was generated last.
        new = np.stack([self._begin[route.inputs], self._newest[route.inputs]])
        begins, tokens = torch.from_numpy(new).to(device)[:, :, None]
        # (states of layer 0, stop - start + 1): columns from a state's begin on, the one of the new token included.
        mask = (torch.arange(start, stop + 1, device=device) >= begins).long()
        logits = self._forward(route, tokens, mask, stop - begins, self._cache)
        self._cache.columns.stop += 1
        self._newest[rows] = logits.argmax(-1)[route.outputs.on(logits.device)].cpu().numpy()
        groups, self._groups = self._groups, []
        self._take_down(groups)

    def _forward(
        self, route: Route, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Logits of the last position, (states of the last layer, vocabulary).

        `tokens` and `positions` are (states of layer 0, new), `mask` (states of layer 0, known and new).
        """
        self.most_rows = max(self.most_rows, len(route.outputs.numbers))
        logits = forward(
            self._lm,
            self._branches,
            route,
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return logits[:, -1]

    def _take_down(self, groups: Sequence[Group]) -> None:
        """Write the newest tokens down: groups whose rows disagree part, and those that are done leave."""
        parts = [part for group in groups for part in self._parts(group)]
        met = self._watch.met([group.generated for group in parts])
        for group, stop in zip(parts, met, strict=True):
            ended_by = self._rules.ends_by(group.generated, stop)
            if ended_by is None:
                self._groups.append(group)
                continue
            text = cut(self._lm, group.generated, self._rules.stops)
            if stop and ended_by != "end token" and text == self._lm.tok_decode(group.generated):
                warn_of_special_stop(self._lm, stop)
            generated = tuple(group.generated)
            self._finished += [
                Completion(group.prompt, variant, generated, ended_by, text) for variant in group.variants
            ]
            self._batch.remove(group.rows)
            self._route = None
        self._cache.settle()

    def _parts(self, group: Group) -> list[Group]:
        """The group with its rows' newest tokens, in as many parts as there are different tokens."""
        by_token: dict[int, Group] = {}
        for row, variant, token in zip(group.rows, group.variants, self._newest[group.rows].tolist(), strict=True):
            part = by_token.setdefault(token, Group(group.prompt, [], [], [*group.generated, token]))
            part.rows.append(row)
            part.variants.append(variant)
        parts = list(by_token.values())
        # One part after another leaves the rest; the last of them is the rest.
        for number, part in enumerate(parts[1:], 1):
            rest = [row for other in (parts[0], *parts[number + 1 :]) for row in other.rows]
            self._batch.part(part.rows, rest)
            self._route = None
        return parts


def _cut(job: Job, capacity: int) -> Iterator[Job]:
    """A job with more variants than there are rows, in pieces."""
    for start in range(0, len(job.variants), capacity):
        yield Job(job.prompt, job.variants[start : start + capacity])
