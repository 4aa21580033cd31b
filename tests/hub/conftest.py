"""A stand-in of the hub, and the environment of someone who may push to it."""

import pytest

from tests.stand_in_hub import Hub

_ASIDE = ("VAN_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in (*_ASIDE, "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub
