"""Which documents a search reads: binds requests to their task, builds prompts and answers, draws, refuses leakage.

`bindings` notes on every request which task it came from; `prompts` is the one builder of a task's prompts and
reference answers; `splits` says which split is evaluated; `fields` says what of a document its prompt shows;
`similarity` compares texts; `leaks` and `fewshot` keep evaluated documents out; `other_task` loads the one to search on
instead; `drawing` puts all of it together.
"""

from lm_eval_lora_drop.harness.bindings import RequestBindings, bind_requests, binding_of
from lm_eval_lora_drop.harness.other_task import other_task
from lm_eval_lora_drop.harness.prompts import example, pairs, reference, references
from lm_eval_lora_drop.harness.splits import draws_from, evaluated_split, shows_evaluated
from lm_eval_lora_drop.sweep.documents.drawing import draw, drawn_documents, order, select

__all__ = [
    "RequestBindings",
    "bind_requests",
    "binding_of",
    "draw",
    "drawn_documents",
    "draws_from",
    "evaluated_split",
    "example",
    "order",
    "other_task",
    "pairs",
    "reference",
    "references",
    "select",
    "shows_evaluated",
]
