"""A provider of judges that likes long answers."""

import json
import re

from lm_eval_lora_drop.judge.known_providers import ProviderSpec
from lm_eval_lora_drop.judge.panel import Judge
from lm_eval_lora_drop.judge.providers.replies import Reply
from lm_eval_lora_drop.judge.questions import Question

PROVIDER = ProviderSpec("toy_judge", max_tokens=16)


class LengthJudge:
    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    async def ask(self, question: Question) -> bytes:
        score = len(re.findall(r"\w", question.prompt)) % 5
        return json.dumps({"said": json.dumps({"score": score}), "by": self.judge.model}).encode()

    async def close(self) -> None:
        pass


def open_provider(judge: Judge, timeout: float) -> LengthJudge:
    return LengthJudge(judge)


def read_reply(body: dict) -> Reply:
    return Reply(text=body["said"], model=body["by"], stop="stop", input_tokens=1, output_tokens=1)
