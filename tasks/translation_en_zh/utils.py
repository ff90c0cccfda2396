"""Scores a translation into Chinese; undoes ParaMed's tokenisation."""

from __future__ import annotations

import html
import re
from typing import Any

from lm_eval_lora_drop.metrics import data
from lm_eval_lora_drop.metrics.corpus import BLEU_ZH, CHRF2
from lm_eval_lora_drop.metrics.shape import shape

_CHINESE = "\u3000-\u303f\u3400-\u9fff\uff00-\uffef"
_SPACE_AT_CHINESE = re.compile(rf"(?<=[{_CHINESE}])\s+|\s+(?=[{_CHINESE}])")


def process_results(doc: dict[str, Any], results: list[str], *, max_gen_toks: int) -> dict[str, Any]:
    """The counts that BLEU and chrF need of this document, and the shape of the output."""
    prediction, reference = results[0].strip(), doc["reference"].strip()
    return {
        "bleu": BLEU_ZH.statistics(prediction, reference),
        "chrf": CHRF2.statistics(prediction, reference),
        **shape(prediction, max_gen_toks, chinese=True),
    }


def load_paramed(**kwargs: Any) -> Any:
    """ParaMed's test split as running text; the validation split comes from WMT, which is not tokenised."""
    loaded = data.load(**kwargs)
    loaded["test"] = loaded["test"].map(
        lambda doc: {"source": join_english(doc["source"]), "reference": join_chinese(doc["reference"])}
    )
    return loaded


def join_english(text: str) -> str:
    """Undoes the hyphens and entities of the Moses tokeniser; punctuation keeps the space before it."""
    return html.unescape(text).replace(" @-@ ", "-")


def join_chinese(text: str) -> str:
    """Takes out the spaces beside Chinese characters and signs."""
    return _SPACE_AT_CHINESE.sub("", html.unescape(text).replace(" @-@ ", "-"))
