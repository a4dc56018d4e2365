"""`postproc-export calibrate` with these arguments, which waits once values are in the spool's file."""

import signal
import sys
import time
from typing import Any

from postproc_export.calibration import tally
from postproc_export.calibration.tally import Spool
from postproc_export.cli import entrypoint

tally.SPOOLED, tally.IN_MEMORY = 16, 0  # every run of 16 values goes to the file
_append = Spool.append


def append_and_wait(self: Spool, *arrays: Any) -> None:
    """Keep the values, and wait as soon as some of them are on disk."""
    _append(self, *arrays)
    if self.on_disk:
        print("spooled", flush=True)
        time.sleep(60)


Spool.append = append_and_wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background hands on that it is ignored
sys.argv[1:1] = ["calibrate"]
entrypoint()
