"""The pipeline that a process of its own runs: KIND and NAME stand in its environment."""

import os

from tests.system.pipelines import KINDS

pipeline = KINDS[os.environ["SYSTEM_KIND"]](os.environ["SYSTEM_NAME"])
