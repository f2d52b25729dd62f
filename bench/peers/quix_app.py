"""The same work as a Quix Streams application, as its tutorials write one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from quixstreams import Application

from bench.peers.answer import NUMBERS

model = pickle.loads(Path(os.environ["BENCH_ESTIMATOR"]).read_bytes())


def answered(fact: dict[str, Any]) -> dict[str, Any]:
    data = fact["data"]
    chances = model.predict_proba_one({name: data[name] for name in NUMBERS})
    return {"id": fact["id"], "key": data["order"], "value": chances[True]}


app = Application(
    broker_address=os.environ["BENCH_BROKER"],
    consumer_group=os.environ["BENCH_OUTPUT"],
    auto_offset_reset="earliest",
    loglevel="WARNING",
)
facts = app.topic(os.environ["BENCH_INPUT"], value_deserializer="json")
predictions = app.topic(os.environ["BENCH_OUTPUT"], value_serializer="json")
sdf = app.dataframe(facts)
sdf = sdf.apply(answered).to_topic(predictions, key=lambda said: said["key"])

if __name__ == "__main__":
    app.run()
