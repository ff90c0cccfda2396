import pytest

from lm_eval_lora_drop.judge.cache import Cache
from lm_eval_lora_drop.judge.panel import parse_panel
from testing.judge_servers import KEYS, JudgeServer


@pytest.fixture(autouse=True)
def planted_keys(monkeypatch, tmp_path):
    """Keys in the environment, and no panel or cache of the user's own."""
    for provider, variable in (("openai", "OPENAI"), ("anthropic", "ANTHROPIC"), ("google", "GEMINI")):
        monkeypatch.setenv(f"{variable}_API_KEY", KEYS[provider])
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "must-not-be-sent")
    monkeypatch.setenv("LORA_DROP_JUDGE_CACHE", str(tmp_path / "judges.sqlite"))
    monkeypatch.delenv("LORA_DROP_JUDGES", raising=False)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "judges.sqlite")


@pytest.fixture
def serve():
    """Start a server with a behaviour; at the end every request must have been as the provider wants it."""
    servers = []

    def start(behaviour):
        servers.append(JudgeServer(behaviour))
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()
        assert server.wrong == []


@pytest.fixture
def panel_of():
    """A panel of judges with waits that suit a test."""

    def make(*judges, **settings):
        return parse_panel({"judges": list(judges), "backoff": 0.01, "timeout": 30.0, **settings}, "test.yaml")

    return make
