"""`spark.python.daemon.module` of the fault suite: the project's daemon, whose workers kill at the planned points.

On a cluster it is shipped, and finds the archives with the project and the tests beside itself.
"""

import sys
from pathlib import Path

sys.path[1:1] = [str(path) for path in Path(__file__).resolve().parent.glob("*.zip")]

from pyspark.daemon import manager  # noqa: E402

import spark_jobs.python_daemon  # noqa: E402, F401
from tests.faults import kill_points  # noqa: E402

if __name__ == "__main__":
    kill_points.patch_spark_worker()
    manager()
