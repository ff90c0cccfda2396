"""Keeps evaluated documents, and documents that are drawn already, out of what a search reads.

The promise. A document is left out if
- its own fields (those its prompt shows) equal those of a document of the evaluated split, the whole split, whatever
  `--limit` says, case, white space, Unicode form and punctuation aside; or its prompt without few-shot examples does,
  case and white space aside; or
- its own fields are nearly the same: the Jaccard similarity of their character 5-grams, normalised in the same way, is
  at least 0.65, and at least 0.95 where the numbers in them differ; or
- the same holds between it and a document that was drawn before (there from 0.75 on).

Wording that more than 1 % of the documents (and more than six, copies aside) share is not counted, so that documents
made from one template are told apart by what was filled in. Texts of fewer than 40 characters (a Chinese one counts as
two), and those of which hardly anything but shared wording is there, are compared for equality only; and where one of
several fields is another one altogether, it is another document.
Documents of another task (`sweep_task`) have other fields: there the fields of each are compared as one text.
Not promised: a paraphrase or a translation is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval_lora_drop.harness.fields import own_texts, shown_fields
from lm_eval_lora_drop.harness.prompts import shown_text
from lm_eval_lora_drop.record.schema import LeftOut, Reason
from lm_eval_lora_drop.sweep.documents.similarity import TWICE_THRESHOLD, DocumentText, Index, Wording

if TYPE_CHECKING:
    from lm_eval.api.task import Task

WORDING_DOCUMENTS = 1000
"""How many documents of the split that is drawn from help to find out which wording is shared."""
_WATCHED = 3
_BATCH = 256


class Guard:
    """Compares documents of a task with its evaluated split, and with those it has let through."""

    def __init__(
        self, task: Task, docs: Sequence[Any], order: Sequence[int], *, evaluated_task: Task | None = None
    ) -> None:
        """`order`: the indices of `docs` in the order in which they are drawn. `evaluated_task`: the task whose
        evaluated split is kept out, where that is not `task`."""
        self._task = task
        self._joined = evaluated_task is not None
        self._docs = docs
        self._order = order
        evaluated = (evaluated_task or task).eval_docs
        if evaluated_task is None:
            self._fields = shown_fields(task, [*_first(evaluated), *_first(docs)])
            texts = [self.text(doc) for doc in evaluated]
        else:
            self._fields = shown_fields(task, _first(docs))
            theirs = shown_fields(evaluated_task, _first(evaluated))
            texts = [self._text(doc, theirs, evaluated_task) for doc in evaluated]
        self._ahead = {index: self.text(docs[index]) for index in order[:WORDING_DOCUMENTS]}
        # Fixed numbers of documents, so that which ones are left out does not depend on how many are asked for.
        self.wording = Wording()
        self.wording.count(texts)
        self.wording.count(self._ahead.values())
        self.evaluated = Index(texts, self.wording)

    def text(self, doc: Any) -> DocumentText:
        """What is compared of a document."""
        return self._text(doc, self._fields, self._task)

    def _text(self, doc: Any, fields: tuple[str, ...], task: Task) -> DocumentText:
        own = own_texts(doc, fields, task)
        return DocumentText.of(("\n".join(own),) if self._joined else own, shown_text(task, doc))

    def pass_through(self) -> Iterator[int | LeftOut]:
        """The documents in their order: the index of one that may be read, or why it is left out."""
        drawn = Index([], self.wording, TWICE_THRESHOLD)
        ids: list[int] = []  # by position in `drawn`
        for start in range(0, len(self._order), _BATCH):
            batch = self._order[start : start + _BATCH]
            texts = [self._ahead[index] if index in self._ahead else self.text(self._docs[index]) for index in batch]
            leaks = self.evaluated.matches(texts)
            earlier = drawn.near(texts)
            within = Index(texts, self.wording, TWICE_THRESHOLD).near(texts)
            let_through: set[int] = set()  # positions in the batch
            for place, (index, text, leak) in enumerate(zip(batch, texts, leaks, strict=True)):
                if leak is not None:
                    reason = Reason.EVALUATED if leak.equal else Reason.NEARLY_EVALUATED
                    yield LeftOut(index, reason, leak.position, leak.similarity)
                    continue
                twins = [
                    *((match, ids[match.position]) for match in [drawn.equal(text)] if match is not None),
                    *((match, ids[match.position]) for match in earlier[place]),
                    *((match, batch[match.position]) for match in within[place] if match.position in let_through),
                ]
                if twins:
                    twin, other = twins[0]
                    reason = Reason.TWICE if twin.equal else Reason.NEARLY_TWICE
                    yield LeftOut(index, reason, other, twin.similarity)
                    continue
                let_through.add(place)
                drawn.add(text)
                ids.append(index)
                yield index


def _first(docs: Any) -> list[Any]:
    return [docs[index] for index in range(min(_WATCHED, len(docs)))]
