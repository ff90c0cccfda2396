"""Labels read from free text. The expected labels are a reader's judgement of what each text says."""

from __future__ import annotations

import pytest

from lm_eval_lora_drop.metrics.labels import is_one_word, read_label

# Texts are separated by "|". fmt: off
YES = (
    "Yes, this is appropriate because it answers the question.|是的！|是的，合适。|合适的|很合适|挺合适的|"
    "Appropriate|\"Yes\"|'yes'|Yes: the reply is suitable|The response is appropriate in this context.|"
    "答案：yes|Final answer: yes|是的，亲|对，合适|恰当的回复|这是合适的|这是一个合适的回复|我觉得合适|"
    "Yes — suitable|✅ Yes|是。理由：客服直接回答了客户的问题。|YES\n|yes，合适|"
    "The candidate reply is suitable|I think so|I would say yes|综上所述，这句回复是合适的。|是否合适？是的|"
    "答案为是|是|是。|是的|“是”|答案：是|合适|对的|没错|可以|恰当|正确|没问题|合適|是的，这句回复合适。|"
    "这句回复是合适的|但是我认为合适|关于是否合适：是|是或否？是|不好意思，是的|好的，我来判断：是|"
    "对话中客服回答了问题，合适|Yes|yes.|YES!|Yes, it is suitable.|yeah|The answer is yes|**Yes**|"
    "It is appropriate.|Yes or no? Yes.|True| \n是\n|没有什么不合适的|没有错误|No problem, it is suitable|"
    '适合|是哦|Ｙｅｓ|合适吗？合适|非常合适|是/否：是|The answer is "yes".|答案是“是”|'
    "我认为这句回复是合适的。|适合的|回复很恰当，没有不妥|Yes it is suitable|suitable|Suitable: yes|"
    "不仅合适，而且很贴心|适合。因为客服回答了问题|這句回覆合適|是的，因为没有无关的内容|没有不合适的地方|"
    "There is nothing wrong with it.|No doubt, it is suitable.|yes yes|Answer: Yes|"
    "Yes. The agent answers the customer's question, which is what was asked.|是，客服没有答非所问|"
    "It is a suitable reply.|是 Yes|Label: Yes|并无不妥|Yes, it's suitable"
)
NO = (
    "不合适的|这不合适|Not appropriate.|No - it does not fit|不是很合适|不那么合适|不能算合适|不大合适|"
    "不够合适|毫不相关|答非所问|回复不恰当|This is not a suitable reply.|The reply is not relevant.|"
    "Inappropriate|“No”|答案：no|Final answer: No.|否，不妥|no，不合适|这是不合适的|It is unsuitable|"
    "否。因为它没有回答客户的问题。|不合适，因为答非所问|我觉得不合适|I would say no|Certainly not|❌ No|"
    "并不是|回复内容与对话无关|不合适！不合适！|無關|不恰當|錯誤|不對|不是合適的回覆|否|否。|不是|不是的|"
    "不对|不合适|不太合适|不恰当|错|错误|无关|不可以|不行|不|不是一个合适的回复|这句回复不合适|"
    "这句回复不是合适的回复|回答是否合适？否|好的，我来判断：否|不能|不正确|“否”|No|no.|"
    "No, it is not suitable.|It is not appropriate|not suitable|unsuitable|Nope|The answer is no|"
    "It isn’t relevant|It isn't|False|This doesn't fit|irrelevant|不符合|并非合适|不算合适|算不上合适|"
    "不怎么合适|合适吗？不合适|不适合|不妥|不相关|答案为否|Ｎｏ|这个回复并不合适|Suitable: No|是否合适：否|"
    "我不认为这句回复合适|I don't think it is suitable.|No. It's not suitable.|否，因为回复与对话无关|不是。|"
    "不適合|Yes or no: no|no no|否，不合适。|客服没有回答问题，所以不合适|"
    "The reply is irrelevant to the conversation|No it is not|neither suitable nor appropriate|谈不上合适|"
    "No, because the customer asked about the size|否。合适的回复应该回答客户的问题|"
    "No, a suitable reply would answer the question"
)
NEITHER = (
    "合适，如果语气好一点|Yes, if the customer agrees|合适个鬼|不要说合适|没说合适|哪里合适了|什么叫合适|"
    "合适的话请回复|请选择是或否|请回答“是”或“否”|Answer yes or no|只回答“是”或“否”|是的，这个回复不合适|"
    "否，这个回复合适|不是不好|It is not bad|not wrong|不错|There is no suitable reply|"
    "I doubt it is suitable|It would be suitable|It should be suitable|It might be appropriate|suitable?|"
    "Yes?|是？|合适？|不合适？|既合适又不合适|有点合适|半合适|Neither|None|N/A|unsure|yes and no, it depends|"
    "Not only suitable|不只是合适的问题|他们认为不合适|客户说不合适|客户觉得不合适|if yes then suitable|"
    "yes/no: |对不起|对方|对于|不客气|不用|不知道|没有|没有回复|有问题|| |也许|亲，您好|但是|还是|对话|know|"
    "eyes|是否合适|yes/no|42|……|好的|我是客服|您可以下单|否则|是/否|Yes and no|可能合适|maybe yes|"
    "不能说不合适|并非不合适|不是不合适|not unsuitable|是，不合适|No, it is suitable.|"
    "Yes, but it is not suitable|合适还是不合适|合适不合适|是和否|“是”和“否”都可以|不应该回答“是”|"
    "回答“否”是不对的|难说合适|未必合适|很难说合适|再合适不过|如果语气好一点，就合适|怎么会合适|难道不合适|"
    "suitable or not|Is it suitable|I would not say no|I can't say yes|hardly suitable|合适的回复是：您好|"
    "合适的回复应该是|答案是|这句回复是|答案是否|yes no|是 否|是\n否|不合适：否|更合适的回复是|有人说合适|"
    "是吗|对吗|No one would call this suitable|anything but suitable|可以的亲，今天发货|没有合适的|无法判断|"
    "不确定，可能是|probably not suitable|不完全合适|是吧|no problem|not entirely suitable|Yes? No?|"
    "The reply says yes to the customer|他说是|yes or no|不无不妥|No reply is suitable|不合适才怪|谁说不合适|"
    "不知道是否合适|less suitable|Should I say yes|not sure|neither yes nor no|"
    "neither suitable nor unsuitable|不能不说合适|没人觉得不合适|It could be suitable|合适吗|not no|非不合适|"
    "我不认为不合适|I don't think it's unsuitable|不会不合适|合适吧"
)
# These may stay unread, but must not be read as the opposite, or at all where they say neither.
ADVERSARIAL_YES = (
    "是的，没有任何不妥之处|这句话没有不合适的地方|合适，没有问题|Yes, no problem.|"
    "Yes, there is nothing inappropriate here.|是，不是不合适|对，这个回复是恰当的。|"
    "The reply is not unsuitable, it is suitable.|【是】|《是》|ａｎｓｗｅｒ：ｙｅｓ|"
    "YES. The response isn't irrelevant.|是（合适）|判断：合适|判断结果：是|我的判断是：是|应该回答“是”|"
    "答：是|A: Yes|這個回覆是合適的|是的，適合|It's suitable|That's appropriate.|Totally suitable!|"
    "回复与上下文相关，合适|候选回复合适，因为它没有答非所问|是。客户问能不能便宜，客服说不能，合适。|"
    "是的，客服说没有货了。|Yes; the customer said no.|Yes. There is no discount, as the agent says.|"
    "合适。虽然客服没有直接回答|Nothing is wrong with this reply.|suitable, not unsuitable|非但合适"
)
ADVERSARIAL_NO = (
    "否，客户问的是价格，客服说“是的”|不合适，“是”不是正确答案|不是很恰当|並不合適|不適當|"
    "这个回复不太符合语境|回复不符合上下文|该回复跟问题无关，所以不恰当|"
    'No. The reply says "yes" but the customer asked when.|No, yes would be wrong|The answer should be no.|'
    "It is by no means suitable|It isn't a suitable reply.|It's not really suitable.|not at all suitable|"
    "This reply cannot be considered suitable|I do not believe this is appropriate|否（不合适）|答：否|"
    "不，不合适。|不，这不合适|没有合适之处|毫无关联|Not relevant|Wrong|Definitely not suitable|No way|"
    "不可能合适|一点也不合适|一点都不合适|根本不合适|完全不合适|实在不合适|很不合适|非常不合适|不甚恰当|"
    "有失妥当|欠妥|不怎么恰当|hardly appropriate|far from suitable|lacks relevance|"
    "The response is inappropriate, not suitable|是不合适的|回答：不是|是吗？否|不合适吗？是的，不合适|"
    "合适？不。|合适？否|是的，不合适吗？不，不合适|不仅不合适|不但不合适，而且答非所问"
)
ADVERSARIAL_NEITHER = (
    "不合适？合适？|我不确定是否合适|说不合适是不对的|说合适是不对的|说它不合适是错误的|不合适是错误的|"
    "认为不合适是不正确的|It is wrong to call it unsuitable|It is incorrect that it is suitable|答案不是“否”|"
    '答案不是否|答案不是是|The answer is not no|The answer is not yes|The answer isn\'t "no"|不能回答否|'
    '不是“是”|not "yes"|Not "No"|没有说不合适|合适与不合适之间|一半合适一半不合适|比不合适好|'
    "比上一句合适|本来合适|原本合适，现在不合适|曾经合适|看起来合适其实不合适|表面上合适，实际上不合适|"
    "看似合适|Seemingly suitable|Once suitable|Almost suitable|Nearly suitable|suitable? no? yes?|Yes/No|"
    "[是/否]|是/否|是，否|yes or no|选项：是、否|选项：A. 是 B. 否|Options: yes, no|请判断是否合适|"
    "下面是一段电商客服对话和一句候选回复。请判断这句回复是否合适，只回答“是”或“否”。|对话：是的|"
    "候选回复：不是的|客户：是的|是什么|是谁|否极泰来|可否合适|何尝不合适|岂不合适|莫非不合适|并不是不合适|"
    "不见得不合适|不至于不合适|没有不是|不无关系|与其说合适，不如说不合适|与其说合适不如说不合适|"
    "宁可说不合适|no longer unsuitable|Not only is it suitable|Not that it is unsuitable|"
    "I can't deny it is suitable|I wouldn't say it is unsuitable|I don't think it is not suitable|"
    "No one says it is unsuitable|Nobody would say it is suitable|It fails to be suitable|Never unsuitable|"
    "Nothing suitable|Not without suitable parts|It will be suitable|It can be suitable|"
    "Suitable for a different question|Suitable for what?|适合您|适合另一个问题|合适的尺码|正确的尺码是|"
    "相关产品|对的尺码|true or false|Correct me|Correct answer|Right|Answer:|The correct answer is|"
    "Is this correct|合适为否|否为合适|是否定的|答案是否定的|答案是肯定的|否定|不否认|不是不可以|"
    'Yes is wrong|"Yes" is wrong|No is the wrong answer|Saying no would be wrong|yes yes no|Y|N|'
    "错了，应该是合适|不对，合适|不是合适不合适的问题|无论合适不合适|不管合适与否|不论是否合适"
)
# fmt: on


def test_yes() -> None:
    """Forms of yes, negations that deny nothing, and double ones of a fixed form."""
    assert [text for text in YES.split("|") if read_label(text) != 1] == []


def test_no() -> None:
    """Forms of no, those included that hold a yes inside."""
    assert [text for text in NO.split("|") if read_label(text) != 0] == []


def test_nothing_to_read() -> None:
    """Questions, hedges, conditions, contradictions, other people's opinions, and words inside other words."""
    texts = [*NEITHER.split("|"), *ADVERSARIAL_NEITHER.split("|"), "是|否"]
    assert [text for text in texts if read_label(text) is not None] == []


def test_rather_unread_than_wrong() -> None:
    """Nothing is read that the text does not say, and at least three in four of these are read."""
    texts = [(text, 1) for text in ADVERSARIAL_YES.split("|")] + [(text, 0) for text in ADVERSARIAL_NO.split("|")]
    assert [text for text, meant in texts if read_label(text) not in (meant, None)] == []
    assert sum(read_label(text) == meant for text, meant in texts) >= 0.75 * len(texts)


@pytest.mark.parametrize("text", ["是", "否。", "不合适", "Yes", " yes! ", "“是”", "是的", "42", "Yes\n"])
def test_one_word(text: str) -> None:
    """One word, whatever stands around it."""
    assert is_one_word(text)


@pytest.mark.parametrize("text", ["", "。", "Yes, it is", "是的，合适", "这句回复合适", "是 的", "是yes吗对"])
def test_more_or_less_than_one_word(text: str) -> None:
    """No word at all, or a sentence."""
    assert not is_one_word(text)
