"""The same work as a Faust agent, as its user guide writes one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import faust

from bench.peers.answer import NUMBERS

model = pickle.loads(Path(os.environ["BENCH_ESTIMATOR"]).read_bytes())
app = faust.App(
    os.environ["BENCH_OUTPUT"].replace(".", "-"),
    broker=f"kafka://{os.environ['BENCH_BROKER']}",
    consumer_auto_offset_reset="earliest",
    topic_partitions=int(os.environ["BENCH_PARTITIONS"]),
    topic_disable_leader=True,
    web_enabled=False,
)
facts = app.topic(os.environ["BENCH_INPUT"])
predictions = app.topic(os.environ["BENCH_OUTPUT"])


@app.agent(facts, sink=[predictions])
async def answered(stream: Any) -> Any:
    async for fact in stream:
        data = fact["data"]
        chances = model.predict_proba_one({name: data[name] for name in NUMBERS})
        yield {"id": fact["id"], "key": data["order"], "value": chances[True]}


if __name__ == "__main__":
    app.main()
