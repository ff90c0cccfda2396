"""google-generativeai, which has ended but is in use: the real SDK against the local server, within the same bounds.

It pins an old protobuf, so it lives in an environment of its own, whose Python the variable names:

    python -m venv /tmp/generativeai && /tmp/generativeai/bin/pip install google-generativeai
    GENERATIVEAI_PYTHON=/tmp/generativeai/bin/python python -m pytest tests/judge/test_generativeai.py
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from testing.judge_servers import KEYS, Say, score_json

PYTHON = os.environ.get("GENERATIVEAI_PYTHON")
needs_sdk = pytest.mark.skipif(
    PYTHON is None, reason="GENERATIVEAI_PYTHON names no Python with google-generativeai (see the docstring)"
)
SCRIPT = """
import json, logging, sys
from pathlib import Path
sys.path.append(sys.argv[2])          # the other requirements, behind the SDK's own
sys.modules["google.genai"] = None    # as if it were not installed
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.panel import parse_panel
from lm_eval_lora_drop.judge.score import Item, score
panel = parse_panel(json.loads(sys.argv[1]), "test.yaml")
found = score(panel, [Item("summary", "Ann: At six?", "At six.", "At six.")], Cache(Path(sys.argv[3])))
record = found.to_json()["judges"]["google-judge"]
print(json.dumps({"scores": found.by_judge, "served": record["served_models"], "errors": found.warnings()}))
"""


def judged(server, tmp_path, **settings):
    """What the SDK's process found, and all it said."""
    judge = server.judge("google", **settings.pop("judge", {}))
    panel = {"judges": [judge], "backoff": 0.01, "timeout": 20.0, **settings}
    arguments = [json.dumps(panel), sysconfig.get_paths()["purelib"], str(tmp_path / "judges.sqlite")]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [PYTHON or sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@needs_sdk
def test_it_scores_and_names_the_model_that_answered(serve, tmp_path):
    server = serve(lambda request, nth: Say(score_json(7), model="judge-1-002"))
    found, said = judged(server, tmp_path)
    assert found == {"scores": {"google-judge": [7]}, "served": {"judge-1-002": 1}, "errors": []}
    (request,) = server.requests
    assert request.body["generationConfig"]["maxOutputTokens"] > 0
    assert "At six?" in request.prompt
    assert KEYS["google"] not in said


@needs_sdk
@pytest.mark.parametrize(
    ("say", "calls"),
    [
        (Say(body=b" " * 3_000_000), 2),
        (Say(score_json(7), fault="half"), 2),
        (Say(score_json(7), fault="drop"), 2),
        (Say(status=500), 2),
        (Say(status=401, error=f"bad key {KEYS['google']}"), 1),
        (Say(status=302, headers={"Location": "http://127.0.0.1:9/elsewhere"}), 2),
    ],
    ids=["too large", "half", "dropped", "failed", "refused", "redirected"],
)
def test_a_call_that_fails_is_no_score_and_made_no_more_often_than_asked(say, calls, serve, tmp_path):
    server = serve(lambda request, nth: say)
    found, said = judged(server, tmp_path, attempts=2)
    assert found["scores"] == {"google-judge": [None]}
    assert len(server.requests) == calls
    assert KEYS["google"] not in said


@needs_sdk
def test_a_body_that_drips_ends_with_the_time_out(serve, tmp_path):
    """A tenth of a second a byte would take half a minute: no pause is long, the whole is."""
    server = serve(lambda request, nth: Say(score_json(7), fault="drip"))
    found, _ = judged(server, tmp_path, attempts=1, timeout=1.0)
    assert found["scores"] == {"google-judge": [None]}
