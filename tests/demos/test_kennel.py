"""The kennel starts again what dies, gives up on what will not live, and passes settings on whole."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from riverkeeper.demos.kennel import MAX_DEATHS, Kennel, Unruly, environment_of
from riverkeeper.settings import Settings
from riverkeeper.topics.embedded import EmbeddedBroker

WAIT_SECONDS = 60.0
FOREVER = "tests.demos.test_kennel:nothing"  # `riverkeeper run` of what is no pipeline ends at once


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def kennel(log: Path) -> Iterator[Kennel]:
    with EmbeddedBroker() as broker, log.open("wb") as file:
        settings = Settings(broker=broker.address)
        kennel = Kennel(environment_of(settings), file)
        try:
            yield kennel
        finally:
            kennel.stop()


def test_what_is_killed_is_started_again_as_another_replica(kennel: Kennel) -> None:
    kennel.start("broker", "riverkeeper.demos.pooch:pooch", "--agents", "ingest")
    assert kennel.replica("broker") == "broker-1"
    for births in range(2, MAX_DEATHS + 4):
        kennel.kill("broker")
        kennel.look()
        assert kennel.replica("broker") == f"broker-{births}", "being killed is no fault of its own"


def test_what_will_not_live_is_given_up_with_its_last_words(kennel: Kennel) -> None:
    kennel.start("ghost", FOREVER)
    until = time.monotonic() + WAIT_SECONDS
    with pytest.raises(Unruly, match="nothing"):
        while time.monotonic() < until:
            kennel.look()
            time.sleep(0.01)


def test_settings_come_through_with_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Settings(broker="127.0.0.1:1", vitals_seconds=0.5, signing_key=SecretStr("k" * 40))
    told = environment_of(given)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert Settings() == given
    assert "RIVERKEEPER_PORT" not in told, "what was not set keeps its default"
