"""Agents as processes of their own, started again when they die: what an orchestrator does, for a demo."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import SecretStr

from ..settings import PREFIX, Settings

MAX_DEATHS = 5  # of one process, unasked; more would not help, and say that something is wrong
STOP_SECONDS = 2.5  # to leave in order; Ctrl-C promises 5 s in all
LOG_LINES = 20  # of a process that will not live


class Unruly(Exception):
    """A process died too often."""


@dataclass
class Dog:
    """A process under one name; `births` numbers its replicas."""

    words: Sequence[str]
    process: subprocess.Popen[bytes]
    births: int = 1
    deaths: int = 0  # unasked

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None


def environment_of(settings: Settings) -> dict[str, str]:
    """What a process needs to be told to have the same settings, secrets included."""
    told = {name: getattr(settings, name) for name in sorted(settings.model_fields_set)}
    plain = {n: v.get_secret_value() if isinstance(v, SecretStr) else v for n, v in told.items()}
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in plain.items() if value is not None}


class Kennel:
    """`riverkeeper run` processes; each tells in its vitals that it is replica `<name>-<birth>`.

    Signals from the terminal do not reach them: whoever opened the kennel ends them, with `stop` or `close`.
    """

    def __init__(self, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._environment = {**os.environ, **environment, "PYTHONHASHSEED": "0", "RIVERKEEPER_PORT": "0"}
        self._log = log
        self._dogs: dict[str, Dog] = {}

    def start(self, name: str, *words: str) -> None:
        """Runs `riverkeeper run <words>` under this name."""
        self._dogs[name] = Dog(words, self._spawn(name, words, 1))

    def kill(self, name: str) -> None:
        """kill -9; `look` starts it again."""
        dog = self._dogs[name]
        dog.process.kill()
        dog.process.wait()
        dog.deaths -= 1  # this one was asked for

    def look(self) -> None:
        """Starts what has died. Raises Unruly."""
        for name, dog in self._dogs.items():
            if not dog.ended:
                continue
            dog.deaths += 1
            if dog.deaths > MAX_DEATHS:
                raise Unruly(
                    f"riverkeeper run {' '.join(dog.words)} died {dog.deaths} times:\n{self._tail()}"
                )
            dog.births += 1
            dog.process = self._spawn(name, dog.words, dog.births)

    def replica(self, name: str) -> str:
        """As what its vitals name the process that runs now."""
        return f"{name}-{self._dogs[name].births}"

    def stop(self, names: Sequence[str] | None = None) -> None:
        """Has these, or all, leave in order, and ends those that do not in time; takes STOP_SECONDS at most."""
        leaving = [self._dogs.pop(name) for name in list(self._dogs if names is None else names)]
        for dog in leaving:
            dog.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for dog in leaving:
            with suppress(subprocess.TimeoutExpired):
                dog.process.wait(max(0.0, until - time.monotonic()))
            dog.process.kill()
            dog.process.wait()

    def _spawn(self, name: str, words: Sequence[str], birth: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "riverkeeper", "run", *words],
            env={**self._environment, "RIVERKEEPER_REPLICA": f"{name}-{birth}"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _tail(self) -> str:
        lines = Path(self._log.name).read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])
