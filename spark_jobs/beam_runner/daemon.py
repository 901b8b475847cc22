"""`spark.python.daemon.module`: imports Beam and the runner before it forks, so that each Python worker starts warm."""

import spark_jobs.beam_runner.transport.spark_worker  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    manager()
