"""Reads a yes or no from free text, in English, Chinese or both: rather not at all than wrongly.

The text is cut into clauses, and each clause into words of a small lexicon (`_WORDS`), so that it becomes a string of
letters. A clause counts where the whole string fits:

    a label        `是的`, `No`, `the answer is yes`, `答案为否`
    a judgement    `这句回复不太合适`, `it is suitable`: one negation makes it a no; of double ones only
                   `没有什么不合适` and its like are read

Questions (`合适吗？`, `是否合适`, `Yes or no?`) say nothing. Everything that counts must agree; a hedge (`可能`, `maybe`), a double
negation of another form, or a clause that judges in words beyond the lexicon and points the other way leave the text
unread.
"""

from __future__ import annotations

import re
import unicodedata

# Enough to see that a traditional text says what its simplified form says; each first character becomes the second.
_TRADITIONAL = (
    "適适當当無无關关錯错誤误確确對对問问題题沒没為为這这個个復复覆复並并較较會会還还應应該该認认話话請请嗎吗麼么與与於于"
    "過过說说難难見见點点斷断結结論论條条實实後后來来雖虽儘尽從从選选擇择標标籤签評评裡里顧顾詢询絕绝決决極极總总語语"
)
_SIMPLIFY = str.maketrans(dict(zip(_TRADITIONAL[::2], _TRADITIONAL[1::2], strict=True)))

# Letter: what its words do in a clause. Of two words that begin at one place the longer is taken.
_WORDS = {
    # Good and bad; those in _CORE are about nothing but the reply, wherever they stand.
    "P": "合适 适合 恰当 妥当 适当 得当 贴切 正确 合理 相关 suitable appropriate relevant correct acceptable proper fitting fits",
    "B": "错误 无关 不妥 欠妥 不当 不符合 不符 答非所问 离题 跑题 unsuitable inappropriate irrelevant incorrect unacceptable improper "
    "unfit wrong|does not fit|do not fit|not fit|does not match|not match",
    # Labels; S is a label or a copula, n and m a label or a negation.
    "Y": "对 没错 yes yeah yep yup true",
    "X": "否 不对 不是的 no nope nah false",
    "S": "是",
    "n": "不是 并不是 并非",
    "m": "不",
    "y": "⟦y⟧",  # a label in quotation marks
    "x": "⟦n⟧",
    # Negations of what follows; of what is thought; of all there is.
    "N": "不太 不很 不够 不怎么 不大 不甚 不那么 不是很 不是太 不是那么 不算 不算是 不算太 不算很 不能算 不能算是 不能说 不能说是 算不上 称不上 谈不上 说不上 "
    "够不上 并不 并不算 并不太 绝不 绝非 毫不 非 没那么 没有那么 不属于 一点也不 一点都不 根本不 实在不 not never neither"
    "|not at all|by no means",
    "M": "不认为 不觉得 并不认为 并不觉得|do not think|do not believe|do not find|do not consider|would not say|would not call",
    "Z": "没有 没 无 并无 毫无 并没有 nothing",
    "z": "未 难 without hardly barely lacks lack less none|far from|rather than|anything but",
    "g": "什么 任何 啥 anything",
    # Words that change nothing: about the reply, how much, who thinks so.
    "f": "这 这句 这个 这条 这则 这段 这一句 该 此 候选 客服 上述 以上 回复 答复 回应 内容 本身 对话 上下文 语境 中 里 根据 结合 从 来看 来说 而言 与 和 跟 一句 "
    "一个 一条 一种 非常 十分 相当 完全 比较 挺 很 也 都 就 极其 极为 绝对 肯定 地 顾客 客户 用户 问题 之处 地方 属于 算 算是 还算 基本 it this that the a "
    "an there candidate reply response message one here very quite really perfectly completely entirely totally definitely "
    "clearly certainly absolutely highly enough also to for in with given context question conversation dialogue dialog "
    "customer situation chat about does",
    "O": "我 我个人 认为 觉得 看来 因此 所以 综上 综上所述 总之 总的来说 整体 总体 其实 确实 显然 很明显 那么 那 不仅 不但 非但 不只 但 但是 不过 然而 而 而且 并且 因为 由于 "
    "so therefore thus hence and but however because since as i think believe say find overall indeed my final|would say|i would say",
    "p": "的 了 呢 啊 呀 哦 噢 喔 哈 滴 哒",
    "A": "答案 结论 结果 回答 判断 标签 评价 正确答案 正确的答案 我的答案 最终答案 选 选择 answer label verdict judgment judgement conclusion|correct answer|right answer",
    "c": "为 is was are",
    "a": "应为 应是 应该是 应该为|should be|would be",
    # Alone they answer; beside other words they most often belong to a conversation ("可以的，今天发货").
    "W": "可以 能 行 没问题 没有问题 没有任何问题 fit",
    "V": "不可以 不可 不能 不行 不会 不好 错",
    # Questions, alternatives, hedges, conditions and what would be.
    "Q": "是否 是不是 对不对 行不行 能不能 可不可以 合不合适 适不适合 恰不恰当 合适不合适 合适与否 吗 么 难道 whether|is it|is this|is that|is the|"
    "does it|does this|does the",
    "o": "或 或者 还是 / or",
    "H": "可能 也许 大概 或许 似乎 好像 恐怕 不可能 吧 勉强 差不多 不完全 不全 不都 部分 未必 不一定 不见得 难以 maybe perhaps possibly probably might may could "
    "seems seem appears partly partially somewhat borderline|not necessarily|not entirely|not fully|not completely|not totally|"
    "not quite|not exactly|not only|not just",
    "h": "不确定 不太确定 不好说 难说 很难说 说不准 说不定 不清楚 不知道 无法 看情况 取决于 选项 选择项 options unsure uncertain unclear depends depend|not sure|not certain|"
    "can not tell|can not say|hard to say|do not know|yes and no",
    "K": "如果 若 要是 假如 除非 只要 if unless",
    # Somebody else's opinion, another sentence.
    "U": "客户觉得 客户认为 顾客觉得 顾客认为 用户觉得 用户认为 客服觉得 客服认为 的问题是 合适的问题 适合的问题 正确的问题",
    "T": "应该 应当 才 更 换 改 再 would should more better instead",
}
_LETTER = {
    word: letter
    for letter, words in _WORDS.items()
    for phrase, *others in [words.split("|")]
    for word in [*phrase.split(), *others]
}
_WORD = re.compile(
    "|".join(
        rf"\b{word}\b" if word.isascii() and word != "/" else re.escape(word)
        for word in sorted(_LETTER, key=len, reverse=True)
    )
    + r"|(?P<unknown>[^\W_]+?(?=[^a-z0-9]|$)|[^\W_])"
)
_CORE = re.compile(r"合适|适合|恰当|妥当|适当|(?:un)?suitable|(?:in)?appropriate")
_ANSWERS = {"it is": 1, "of course": 1, "it is not": 0, "this is not": 0, "not really": 0, "not at all": 0} | {
    f"{word}{negation}": int(not negation)
    for word in ("absolutely", "definitely", "certainly")
    for negation in ("", " not")
} | {"of course not": 0, "i do not think so": 0, "i think so": 1}  # fmt: skip
# "No problem" and its like deny nothing; "not only" and 不得不说 neither.
_IDIOM = re.compile(
    r"\bno (?:problems?|doubt|worries|question|wonder|matter|issues?|need|thanks)\b(?: that\b)?|没关系|不好意思|不客气|不用谢|毫无疑问"
)
_SENTENCE = re.compile(r"[^。！!?.\n;…]+[。！!?.\n;…]*")
_CLAUSE = re.compile(r"([^,、:()\[\]{}<>—–|~-]+)([,、:()\[\]{}<>—–|~-]*)")
_CONJUNCTION = re.compile(
    r"因为|由于|(?<![不非])但是?|不过|然而|所以|因此|而且|并且|且|\b(?:because|since|but|however|and|therefore|so(?=\s+\w))\b"
)
_SPEAKERS = {
    *["对话", "客户", "客服", "顾客", "用户", "买家", "卖家", "候选回复", "dialogue", "dialog", "customer", "agent"],
    "candidate reply",
}
_QUOTES = "\"'“”‘’「」『』《》【】`*_#"
_QUOTED = re.compile(rf"[{_QUOTES}]+\s*(是|否|yes|no)\s*[.。]?\s*[{_QUOTES}]+")
# "Yes it is": without a comma only before these words, since "no reply" and "no one" begin otherwise.
_LEAD_LABEL = re.compile(r"\s*(yes|no)\s+(?=(?:it|this|that|the|there|i)\b)")
_LABEL = re.compile(
    r"[Op]*(?:f*A+[cSa])?O*(?:(?P<yes>[Yy]+|S[Yy]*)|(?P<no>[Xxn]+))[pf]*(?<!f)|O*A(?:(?P<yes2>[Yy])|(?P<no2>[Xx]))p*"
)


def read_label(text: str) -> int | None:
    """1 for yes, 0 for no, None where the text says neither clearly.

    >>> read_label("是的，这个回复合适"), read_label("合适吗？不合适"), read_label("No, it is not."), read_label("也许")
    (1, 0, 0, None)
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_SIMPLIFY)
    return _Reading(plain).label


class _Reading:
    """What the clauses of a text say, gathered one after another."""

    def __init__(self, text: str) -> None:
        self.said: list[int] = []  # by clauses that fit
        self.hinted: list[int] = []  # by those that judge in other words
        self.headings: list[int] = []  # "合适：", "Suitable:", which the text after it answers
        self.blurred = False
        self._heading_denied = False
        clauses = _clauses(text)
        for clause, end in clauses:
            self._read(clause, heading=end.startswith(":") and clause is not clauses[-1][0])
        alone = [clause for clause, _ in clauses if set(_letters(clause)) - set("fOp")]
        if not self.said and not self.hinted and len(alone) == 1:
            self._read_alone(alone[0])

    @property
    def label(self) -> int | None:
        """1, 0, or None where it is unread."""
        said = set(self.said) or set(self.headings)
        if self.blurred or len(said) != 1:
            return None
        return said.pop() if set(self.hinted) <= said else None

    def _read(self, clause: str, *, heading: bool) -> None:
        letters = _letters(clause)
        labelled = set(letters) & set("YXyx")
        judged = set(letters) & set("PB")
        if "h" in letters or ("H" in letters and (labelled or judged)) or "K" in letters:
            self.blurred = True
        elif "Q" in letters or "o" in letters or re.search(r"P.*[mZ]$", letters):
            return
        elif clause.strip() in _ANSWERS:
            self.said.append(_ANSWERS[clause.strip()])
        elif match := _LEAD_LABEL.match(clause):
            self.said.append(int(match[1] != "no"))
            self._read(clause[match.end() :], heading=heading)
        elif match := _LABEL.fullmatch(letters):
            if self._heading_denied:
                self.blurred = True
            self.said.append(int(bool(match["yes"] or match["yes2"])))
        elif labelled & set("yx"):
            self.blurred = True
        else:
            self._judge(letters, clause, heading=heading)
        self._heading_denied = heading and bool(judged) and self.said[-1:] == [0]

    def _judge(self, letters: str, clause: str, *, heading: bool = False) -> None:
        core = re.sub("[fOpcSA]", "", letters).replace("n", "N").replace("m", "N")
        said = {"P": 1, "NP": 0, "B": 0, "MP": 0}.get(core)
        if re.fullmatch("Zg*(?:NP|B)", core):  # 没有什么不合适的
            said = 1
        if said is not None and not re.search("[PB].*[cS]$", letters):  # 合适的回复是 ...: the sentence goes on
            (self.headings if heading and core == "P" else self.said).append(said)
        elif _CORE.search(clause) and "T" not in letters:
            negations = len(re.findall("[NMZzXVB]", core))
            self.blurred |= negations > 1
            self.hinted.append(1 - negations % 2)

    def _read_alone(self, clause: str) -> None:
        letters = re.sub("[fOp]", "", _letters(clause))
        if letters in ("W", "V", "m"):
            self.said.append(int(letters == "W"))


def _clauses(text: str) -> list[tuple[str, str]]:
    """Clauses with the marks that end them; without questions, quotation marks and idioms."""
    text = re.sub(r"\b(ca|wo)n['’]?t\b", r"can not", text)
    text = re.sub(r"\b(is|was|are|do|does|did|would|should|could)n['’]?t\b", r"\1 not", text)
    text = re.sub(r"\b(it|that|this|there)['’]s\b", r"\1 is", text)
    text = _QUOTED.sub(lambda match: "⟦y⟧" if match[1] in ("是", "yes") else "⟦n⟧", text)
    text = _IDIOM.sub(" , ", re.sub(f"[{_QUOTES}]", " ", text))
    text = re.sub(r"\b(?:any|every)thing but\b", "far from", re.sub(r"\bnor\b", ", not", text))
    # Between Chinese characters a space separates; elsewhere it only parts words.
    text = re.sub(r"(?<=[\u3400-\u9fff])[ \t]+(?=[\u3400-\u9fff])", ",", text)
    found = []
    for sentence in _SENTENCE.findall(text):
        if "?" in sentence:
            continue
        for clause, end in _CLAUSE.findall(sentence):
            if end.startswith(":") and clause.strip() in _SPEAKERS:
                break  # what follows is quoted
            parts = [part for part in _CONJUNCTION.split(clause) if part.strip()]
            found += [(part, "") for part in parts[:-1]] + [(part, end) for part in parts[-1:]]
    return found


def _letters(clause: str) -> str:
    """The clause as the letters of its words, U where a word is not in the lexicon."""
    return "".join("U" if match["unknown"] else _LETTER[match[0]] for match in _WORD.finditer(clause))


def is_one_word(text: str) -> bool:
    """Whether the text is a single word, punctuation aside; up to three Chinese characters in a row count as one."""
    words = re.findall(r"[^\W_]+", "".join(" " if unicodedata.category(c)[0] in "PSZ" else c for c in text))
    if len(words) != 1:
        return False
    chinese = sum("\u3400" <= character <= "\u9fff" for character in words[0])
    return chinese == 0 or len(words[0]) <= 3
