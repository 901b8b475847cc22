"""Spark's Python workers start with what the daemon imported, and their collector never looks at it."""

from __future__ import annotations

import subprocess
import sys

LEFT = "import gc, sys, spark_jobs.python_daemon; print('apache_beam' in sys.modules, len(gc.get_objects()))"


def test_workers_do_not_collect_what_the_daemon_imported() -> None:
    """PySpark's worker collects garbage after each task: 80 ms of a core, were Beam's objects among the collected."""
    warm, left = subprocess.check_output([sys.executable, "-c", LEFT], text=True).split()
    assert warm == "True"
    assert int(left) < 2_000
