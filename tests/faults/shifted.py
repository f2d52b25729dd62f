"""`riverkeeper run` in a process whose clock jumps: by FAULT_SHIFT seconds, FAULT_AFTER seconds after its start.

The clock is what `time.time` says; nothing that was imported before can have kept the true one.
"""

from __future__ import annotations

import os
import time

_true = time.time
_jump = _true() + float(os.environ["FAULT_AFTER"])
_shift = float(os.environ["FAULT_SHIFT"])


def shifted() -> float:
    now = _true()
    return now + _shift if now >= _jump else now


if __name__ == "__main__":
    time.time = shifted

    from riverkeeper.cli import main

    main(prog_name="riverkeeper")
