"""Makes published versions again from the log alone: `python -m tests.system.rebuild BROKER KIND NAME`.

Prints, by "<model>/<version>", whether parent and spans gave the published bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

import msgspec

from riverkeeper.models.quality import learn
from riverkeeper.models.unpickle import AllowList
from riverkeeper.models.version import Assembler, environment, interned, interned_label, rebuild
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.messages import Example
from tests.system.harness import Outside
from tests.system.pipelines import KINDS


async def main(address: str, kind: str, name: str) -> dict[str, bool]:
    pipeline = KINDS[kind](name)
    async with Outside(Connection(address), pipeline) as log:
        await log.read_up()
    examples = {(r.partition, r.offset): r.value for r in log["examples"]}
    library = Assembler(keep=1_000)
    for record in log["models"]:
        library.feed(record.key or b"", record.value)
    allow = AllowList(pipeline.trusted)
    same = {}
    for model, declared in pipeline.models.items():
        names = set(pipeline.model_features[model])

        def study(estimator: object, values: Sequence[bytes], names: set[str] = names) -> None:
            for value in values:
                example = msgspec.json.decode(value, type=Example)
                features = {n: v for n, v in example.features.items() if n in names}
                learn(pipeline.task, estimator, interned(features), interned_label(example.label))

        for manifest in library.manifests(model):
            assert manifest.environment == environment(), "rebuild in the environment of the learner"
            parent = library.blob(model, manifest.parent) if manifest.parent else None
            spans = [
                [examples[p, o] for o in range(start, end) if (p, o) in examples]
                for p, start, end in manifest.spans
            ]
            made = rebuild(parent, declared.factory, spans, study, allow)  # type: ignore[arg-type]
            same[f"{model}/{manifest.version}"] = made == library.blob(model, manifest.version)
    return same


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(*sys.argv[1:4]))))
