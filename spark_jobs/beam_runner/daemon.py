"""`spark.python.daemon.module`: imports Beam and the runner before it forks, so that each Python worker starts warm."""

from pyspark.daemon import manager

import spark_jobs.beam_runner.transport.spark_worker  # noqa: F401

if __name__ == "__main__":
    manager()
