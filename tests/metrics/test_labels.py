"""Labels read from free text. The expected labels are a reader's judgement of what each text says."""

from __future__ import annotations

import pytest

from lm_eval_lora_drop.metrics.labels import is_one_word, read_label


@pytest.mark.parametrize(
    "text",
    [
        "是", "是。", "是的", "“是”", "答案：是", "合适", "对的", "没错", "可以", "恰当", "正确", "没问题", "合適",
        "是的，这句回复合适。", "这句回复是合适的", "但是我认为合适", "关于是否合适：是", "是或否？是",
        "不好意思，是的", "好的，我来判断：是", "对话中客服回答了问题，合适",
        "Yes", "yes.", "YES!", "Yes, it is suitable.", "yeah",
        "The answer is yes", "**Yes**", "It is appropriate.", "Yes or no? Yes.", "True", " \n是\n",
    ],
)  # fmt: skip
def test_yes(text: str) -> None:
    """Chinese and English forms of yes."""
    assert read_label(text) == 1


@pytest.mark.parametrize(
    "text",
    [
        "否", "否。", "不是", "不是的", "不对", "不合适", "不太合适", "不恰当", "错", "错误", "无关", "不可以", "不行",
        "不", "不是一个合适的回复",
        "这句回复不合适", "这句回复不是合适的回复", "回答是否合适？否", "好的，我来判断：否", "不能", "不正确", "“否”",
        "No", "no.", "No, it is not suitable.", "It is not appropriate", "not suitable", "unsuitable", "Nope",
        "The answer is no", "It isn’t relevant", "It isn't", "False", "This doesn't fit", "irrelevant", "不符合",
    ],
)  # fmt: skip
def test_no(text: str) -> None:
    """Chinese and English forms of no, those included that hold a yes inside."""
    assert read_label(text) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "也许",
        "亲，您好",
        "但是",
        "还是",
        "对话",
        "know",
        "eyes",
        "是否合适",
        "yes/no",
        "42",
        "……",
        "好的",
        "我是客服",
        "您可以下单",
        "否则",
    ],
)
def test_nothing_to_read(text: str) -> None:
    """Texts that neither affirm nor deny; a word inside another word does not count."""
    assert read_label(text) is None


@pytest.mark.parametrize("text", ["是", "否。", "不合适", "Yes", " yes! ", "“是”", "是的", "42", "Yes\n"])
def test_one_word(text: str) -> None:
    """One word, whatever stands around it."""
    assert is_one_word(text)


@pytest.mark.parametrize("text", ["", "。", "Yes, it is", "是的，合适", "这句回复合适", "是 的", "是yes吗对"])
def test_more_or_less_than_one_word(text: str) -> None:
    """No word at all, or a sentence."""
    assert not is_one_word(text)
