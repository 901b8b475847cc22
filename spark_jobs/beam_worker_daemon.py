"""`spark.python.daemon.module` on a cluster: the daemon of python_daemon.py, out of the archive that was shipped.

Shipped as a module of its own: Spark starts `python -m beam_worker_daemon` in the executor's working folder, where this
file and the archive lie side by side, before any archive is on the path.
"""

import sys
from pathlib import Path

sys.path[1:1] = [str(path) for path in Path(__file__).resolve().parent.glob("beam_runner-*.zip")]

from pyspark.daemon import manager  # noqa: E402

import spark_jobs.python_daemon  # noqa: E402, F401

if __name__ == "__main__":
    manager()
