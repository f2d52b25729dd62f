"""Bugs to plant in the production code, to show that the simulator finds them.

Each takes a rule of docs/design.md out of the source as it is imported, in a process of its own; nothing on
disk changes. `within` is the number of seeds, from 0 on, within which it must be found.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from types import ModuleType

from tests.counterexamples.without import Remedy


@dataclass(frozen=True)
class Bug:
    what: str
    remedy: Remedy
    within: int = 300


BUGS = {
    "no_origin_check": Bug(
        "a reader admits every copy of a cause's outputs",
        Remedy("topics/store.py", "if at > seen.get(source, NOTHING_SEEN):", "if True:"),
    ),
    "early_checkpoint": Bug(
        "a checkpoint is begun before the outputs below it are acknowledged",
        Remedy(
            "agents/agent.py",
            "                await session.sent()\n                await owner.work.prepare(now)\n",
            "                await owner.work.prepare(now)\n",
        ),
    ),
    "outputs_not_awaited": Bug(
        "outputs are sent while those of the step before are on their way, and nobody waits for these",
        Remedy(
            "agents/agent.py",
            "        await session.sent()\n        if self.transactional_outputs",
            "        if self.transactional_outputs",
        ),
    ),
    "handed_over_unsent": Bug(
        "a rebalance makes state durable whose outputs are still on their way",
        Remedy(
            "agents/agent.py",
            "        await session.sent()\n        owners = list(session.owners.values())\n",
            "        owners = list(session.owners.values())\n",
        ),
        within=1_000,
    ),
    "no_fence": Bug(
        "every owner has a transactional id of its own, so that none is fenced",
        Remedy(
            "topics/log.py",
            "            transactional_id=transactional_id if transactions else None,\n",
            '            transactional_id=f"{transactional_id}.{connection.network.random.random()}",\n',
        ),
    ),
    "state_without_transaction": Bug(
        "a zombie's state is a plain write, and overwrites newer state",
        Remedy(
            "topics/log.py",
            "        self._transactions = transactions\n",
            "        self._transactions = transactions = False\n",
        ),
    ),
    "read_before_fence": Bug(
        "a takeover reads the store, and then fences",
        Remedy(
            "agents/agent.py",
            "                await writer.start()\n",
            "",
            also=(
                Remedy(
                    "agents/agent.py",
                    "                owner = Owner(partition, self.store, writer, work)\n",
                    "                await writer.start()\n"
                    "                owner = Owner(partition, self.store, writer, work)\n",
                ),
            ),
        ),
        within=2_000,
    ),
    "delivery_not_looked_at": Bug(
        "a transaction is committed though a batch of it was refused",
        Remedy(
            "topics/log.py",
            "            await _deliver(self._producer, outs)\n            async with",
            "            with suppress(DeliveryError):\n"
            "                await _deliver(self._producer, outs)\n            async with",
        ),
        within=1_000,
    ),
    "on_after_refusal": Bug(
        "a writer goes on after a batch of it has failed for good",
        Remedy(
            "topics/log.py",
            "            self._spent = DeliveryError(str(error))  #",
            "            return\n            self._spent = DeliveryError(str(error))  #",
        ),
    ),
    "uncommitted_reads": Bug(
        "records of open and of aborted transactions are read",
        Remedy(
            "topics/log.py", '"isolation_level": "read_committed"', '"isolation_level": "read_uncommitted"'
        ),
        within=1_000,
    ),
    "ids_not_saved": Bug(
        "the recent ids are no part of the checkpoint",
        Remedy(
            "agents/ingest.py",
            "return self._recent.changes() if self._recent is not None else []",
            "return []",
        ),
    ),
    "join_without_transaction": Bug(
        "examples go out before the state that they come from",
        Remedy(
            "agents/agent.py",
            "        if self.transactional_outputs and self.runtime.transactions:\n",
            '        if self.transactional_outputs and self.name != "join":\n',
        ),
    ),
    "overlapping_transactions": Bug(
        "a batch's transaction begins while that of a checkpoint has not ended",
        Remedy(
            "agents/agent.py",
            "                await owner.settle()  # a producer has one",
            "                pass  # one",
        ),
    ),
    "handed_over_after_failure": Bug(
        "a rebalance makes state durable whose outputs were refused a moment before",
        Remedy(
            "agents/agent.py",
            "            except BaseException:\n                self.end()\n                raise\n",
            "            except BaseException:\n                raise\n",
        ),
        within=1_000,
    ),
    "ended_by_a_stray": Bug(
        "a cancellation that comes out of a client's stop ends an agent",
        Remedy(
            "agents/agent.py",
            "                with stray.named():\n                    await self._stay(stop)\n",
            "                await self._stay(stop)\n",
            also=(
                Remedy(
                    "topics/log.py",
                    "        if stopping.cancelled():\n            await _left_open(consumer)\n"
                    "        else:\n            stopping.result()\n",
                    "        await stopping\n",
                ),
            ),
        ),
        within=2_000,
    ),
}


class _Mutant(importlib.machinery.SourceFileLoader):
    """Compiles a module's text without a remedy; reads and writes no bytecode."""

    def __init__(self, fullname: str, path: str, remedies: Sequence[Remedy]) -> None:
        super().__init__(fullname, path)
        self._remedies = remedies

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        with open(self.path, encoding="utf-8") as file:
            source = file.read()
        for remedy in self._remedies:
            source = remedy.removed(source)
        return compile(source, self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, remedies: Sequence[Remedy]) -> None:
        self._remedies: dict[str, list[Remedy]] = {}
        for remedy in remedies:
            module = "riverkeeper." + remedy.file.removesuffix(".py").replace("/", ".")
            self._remedies.setdefault(module, []).append(remedy)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._remedies:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Mutant(fullname, spec.origin, self._remedies[fullname])
        return spec


def plant(name: str) -> None:
    """From here on this process imports the bug. Raises RuntimeError if it is too late for that."""
    remedies = BUGS[name].remedy.parts
    finder = _Finder(remedies)
    if late := [module for module in finder._remedies if module in sys.modules]:
        raise RuntimeError(f"{late[0]} was imported before {name} could be planted")
    sys.meta_path.insert(0, finder)
