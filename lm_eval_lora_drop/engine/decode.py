"""Greedy decoding of many rows at once: rows that have said the same share their states, finished rows leave, waiting
prompts take their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.models.utils_hf import pad_and_concat
from transformers.cache_utils import Cache, DynamicCache

from lm_eval_lora_drop.engine.branching import Branches, forward
from lm_eval_lora_drop.engine.cache import RowCache
from lm_eval_lora_drop.engine.prefix import Prefix, common_prefix, weight
from lm_eval_lora_drop.engine.requests import Rules, StopWatch, encode_prompt
from lm_eval_lora_drop.engine.tree import Route, Tree

PREFILL_TOKENS = 4096
"""Prompt tokens times rows per prefill: enough for full speed, and intermediate results stay within a CPU's cache."""
REFILL_SHARE = 0.25
"""Under several boundaries waiting prompts come in together, when this share of the rows is free: a prefill of one is
slow in the low layers, where one state stands for all boundaries. Under one boundary a prompt comes in at once."""


@dataclass(frozen=True)
class Job:
    """A prompt and the boundaries it is to be answered under, in falling order."""

    prompt: int
    boundaries: tuple[int, ...]


@dataclass
class Group:
    """Rows of one prompt that have said the same so far, in falling order of boundary."""

    prompt: int
    rows: list[int]
    boundaries: list[int]
    said: list[int]


class Decoder:
    """Answers jobs with at most `capacity` rows at a time.

    With `branches` (whose wrappers are on whenever `run` is called) the boundaries run together. Without, the model
    answers as it is, and each job has one boundary that stands for that.
    """

    def __init__(
        self,
        lm: Any,
        prompts: Sequence[str],
        jobs: Sequence[Job],
        rules: Rules,
        branches: Branches | None,
        capacity: int,
    ) -> None:
        self._lm = lm
        self._rules = rules
        self._branches = branches
        self._watch = StopWatch(lm, rules)
        self._tokens = {job.prompt: encode_prompt(lm, prompts[job.prompt], rules) for job in jobs}
        # Longest first: whoever comes later finds room for its prompt.
        pieces = [piece for job in jobs for piece in _cut(job, capacity)]
        self._waiting = deque(sorted(pieces, key=lambda job: -len(self._tokens[job.prompt])))
        # Read before the first prompts, all boundaries at once. A token of each prompt is left, for its logits.
        self._under = sorted({boundary for job in jobs for boundary in job.boundaries}, reverse=True)
        shortest = min(map(len, self._tokens.values()), default=0) if len(self._under) <= capacity else 0
        self._common = common_prefix(self._tokens.values(), max(0, shortest - 1))
        self._prefix: Prefix | None = None
        self._groups: list[Group] = []
        self._tree = Tree(lm.model.config.get_text_config(decoder=True).num_hidden_layers, capacity)
        self._cache = RowCache(self._tree)
        self._refill_at = REFILL_SHARE * capacity if branches else 1
        # By row: the token said last, and the column in which the prompt begins.
        self._newest = np.zeros(capacity, np.int64)
        self._begin = np.zeros(capacity, np.int64)
        self._route: Route | None = None
        self._finished: list[tuple[int, int, str]] = []
        self.most_rows = 0

    @property
    def busy(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._groups)

    def take(self) -> list[tuple[int, int, str]]:
        """(prompt, boundary, text) of what has been answered since last asked."""
        finished, self._finished = self._finished, []
        return finished

    def unfinished(self) -> list[Job]:
        """What has not been answered yet."""
        return [Job(group.prompt, tuple(group.boundaries)) for group in self._groups] + list(self._waiting)

    def run(self, enough: int) -> None:
        """Go on until `enough` answers can be taken, or all."""
        while len(self._finished) < enough and self.busy:
            self._refill()
            if self._groups:
                self._step()

    def _refill(self) -> None:
        while self._waiting:
            needed = len(self._waiting[0].boundaries)
            if self._groups and self._tree.free < max(needed, self._refill_at):
                return
            jobs: list[Job] = []
            rows = 0
            for job in self._waiting:
                rows += len(job.boundaries)
                if rows > self._tree.free:
                    break
                jobs.append(job)
            self._admit(jobs)
            for _ in jobs:
                self._waiting.popleft()

    @torch.inference_mode()
    def _admit(self, jobs: Sequence[Job]) -> None:
        """Read prompts, longest first; their rows join the batch with their first tokens."""
        if self._common and self._prefix is None:
            self._prefix = Prefix(self._lm, self._common, self._under, self._branches)
        longest = len(self._tokens[jobs[0].prompt])
        if not self._groups:
            self._cache.start = self._cache.stop = 0
        self._begin += self._cache.make_room(longest)
        if not self._groups:
            self._cache.stop = longest
        self._cache.begin_at(self._cache.stop - longest)
        # All rows at once, so that the buffers grow once.
        rows = iter([self._tree.add(job.boundaries) for job in jobs])
        groups = [group for piece in self._pieces(jobs) for group in self._read(piece, [next(rows) for _ in piece])]
        self._route = None
        self._take_down(groups)

    def _pieces(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        piece: list[Job] = []
        rows = 0
        for job in jobs:
            rows += len(job.boundaries)
            longest = len(self._tokens[(piece or [job])[0].prompt])
            if piece and rows * weight(longest, len(self._common)) > PREFILL_TOKENS:
                yield piece
                piece, rows = [], len(job.boundaries)
            piece.append(job)
        yield piece

    def _read(self, jobs: Sequence[Job], ours: Sequence[Sequence[int]]) -> Iterator[Group]:
        """One prefill, of the jobs of which these are the rows."""
        tree = Tree(self._tree.num_layers, sum(len(job.boundaries) for job in jobs))
        theirs = [tree.add(job.boundaries) for job in jobs]
        document = np.zeros(sum(map(len, theirs)), np.int64)
        for index, rows in enumerate(theirs):
            document[rows] = index
        device = self._lm.device
        flat = [[row for rows in side for row in rows] for side in (theirs, ours)]
        route = tree.route(flat[0], device)
        spoken = [self._tokens[job.prompt] for job in jobs]
        lengths = np.array([len(tokens) for tokens in spoken])
        width = int(lengths.max())
        begins = (width - lengths)[document]
        prompts = self._prefix.cache(tree, begins) if self._prefix else DynamicCache()
        # What the prefix's copies hold is not read again.
        known = prompts.get_seq_length()
        padded = pad_and_concat(width, [torch.tensor(tokens, device=device) for tokens in spoken], "left")
        inputs = torch.from_numpy(document[route.inputs]).to(device)
        columns = torch.arange(width, device=device) - torch.from_numpy(begins[route.inputs]).to(device)[:, None]
        logits = self._forward(
            route, padded[inputs, known:], (columns >= 0).long(), columns[:, known:].clamp(min=0), prompts
        )
        self._cache.take(prompts, tree, *flat)
        self._newest[flat[1]] = logits.argmax(-1)[route.outputs].cpu().numpy()
        for job, own, length in zip(jobs, ours, lengths.tolist(), strict=True):
            self._begin[list(own)] = self._cache.stop - length
            yield Group(job.prompt, list(own), list(job.boundaries), [])

    @torch.inference_mode()
    def _step(self) -> None:
        """One more token for every row."""
        device = self._lm.device
        if self._route is None:
            self._route = self._tree.route([row for group in self._groups for row in group.rows], device)
            live = [group.rows[0] for group in self._groups]
            self._cache.start = int(self._begin[live].min())
        self._begin += self._cache.make_room(0)
        route = self._route
        begins = torch.from_numpy(self._begin[route.inputs]).to(device)
        tokens = torch.from_numpy(self._newest[route.inputs]).to(device)
        columns = torch.arange(self._cache.start, self._cache.stop + 1, device=device)
        mask = (columns >= begins[:, None]).long()
        logits = self._forward(route, tokens[:, None], mask, self._cache.stop - begins[:, None], self._cache)
        self._cache.stop += 1
        self._newest[[row for group in self._groups for row in group.rows]] = (
            logits.argmax(-1)[route.outputs].cpu().numpy()
        )
        groups, self._groups = self._groups, []
        self._take_down(groups)

    def _forward(
        self, route: Route, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """Logits of the last position, (states of the last layer, vocabulary)."""
        self.most_rows = max(self.most_rows, len(route.outputs))
        logits = forward(
            self._lm,
            self._branches,
            route,
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return logits[:, -1]

    def _take_down(self, groups: Sequence[Group]) -> None:
        """Write the newest tokens down: groups whose rows disagree part, and those that are done leave."""
        spoken = [part for group in groups for part in self._parts(group)]
        met = self._watch.met([group.said for group in spoken])
        for group, stopped in zip(spoken, met, strict=True):
            ended = group.said[-1] in self._rules.end_tokens or len(group.said) >= self._rules.max_new_tokens
            if not (stopped or ended):
                self._groups.append(group)
                continue
            text = self._rules.text(self._lm, group.said)
            self._finished += [(group.prompt, boundary, text) for boundary in group.boundaries]
            self._tree.remove(group.rows)
            self._route = None
        self._cache.settle()

    def _parts(self, group: Group) -> list[Group]:
        by_token: dict[int, Group] = {}
        for row, boundary, token in zip(group.rows, group.boundaries, self._newest[group.rows].tolist(), strict=True):
            part = by_token.setdefault(token, Group(group.prompt, [], [], [*group.said, token]))
            part.rows.append(row)
            part.boundaries.append(boundary)
        _, *others = by_token.values()
        for part in others:
            self._tree.part(part.rows)
            self._route = None
        return list(by_token.values())


def _cut(job: Job, capacity: int) -> Iterator[Job]:
    """A job with more boundaries than there are rows, in pieces."""
    for start in range(0, len(job.boundaries), capacity):
        yield Job(job.prompt, job.boundaries[start : start + capacity])
