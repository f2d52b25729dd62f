"""The pipeline of a benchmark's child process: `riverkeeper run bench.child:pipeline`."""

from __future__ import annotations

import os

import msgspec

from bench.work import DECLARED, Declared

pipeline = msgspec.json.decode(os.environ[DECLARED], type=Declared).pipeline()
