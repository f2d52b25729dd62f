"""The same work as a Bytewax dataflow, as its Kafka guide writes one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

from bench.peers.answer import NUMBERS

model = pickle.loads(Path(os.environ["BENCH_ESTIMATOR"]).read_bytes())
BROKERS = [os.environ["BENCH_BROKER"]]


def answered(message: KafkaSourceMessage[bytes, bytes]) -> KafkaSinkMessage[bytes, bytes]:
    fact = orjson.loads(message.value)
    data = fact["data"]
    chances = model.predict_proba_one({name: data[name] for name in NUMBERS})
    said = orjson.dumps({"id": fact["id"], "key": data["order"], "value": chances[True]})
    return KafkaSinkMessage(data["order"].encode(), said)


flow = Dataflow("score")
facts = kop.input("facts", flow, brokers=BROKERS, topics=[os.environ["BENCH_INPUT"]])
kop.output(
    "predictions", op.map("answer", facts.oks, answered), brokers=BROKERS, topic=os.environ["BENCH_OUTPUT"]
)
