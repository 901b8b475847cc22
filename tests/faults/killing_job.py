"""The counting job as a program that kills itself, or its workers, at the planned points (see kills.py).

A run that a kill ended is started again, as a user would: a child process each, so that Beam is imported once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from spark_jobs.beam_runner.errors import SessionLostError
from tests.faults import counting_job, kill_points, kills

_SESSION_LOST = 70


def main(arguments: list[str]) -> None:
    """Ends with 0 after a run that ended by itself. `<root>/runs` has the exit code of each."""
    root = Path(arguments[0])
    while True:
        left = len(kills.done(root))
        child = os.fork()
        if child == 0:
            _run(root, arguments)
            return
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with open(root / "runs", "a") as file:
            print(code, file=file)
        if code == 0:
            return
        if code not in (-signal.SIGKILL, _SESSION_LOST) or len(kills.done(root)) == left:
            sys.exit(f"exit code {code}, and no kill was the cause")


def _run(root: Path, arguments: list[str]) -> None:
    logging.basicConfig(level=logging.WARNING)
    (root / "driver.pid").write_text(str(os.getpid()))
    kill_points.patch_driver()
    if "--transport=local" in arguments:
        kill_points.patch_tasks()
    try:
        counting_job.main(arguments)
    except SessionLostError as error:
        logging.error("%s", error)
        sys.exit(_SESSION_LOST)


if __name__ == "__main__":
    main(sys.argv[1:])
