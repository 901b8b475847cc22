"""`spark.python.daemon.module`: imports Beam and the runner before it forks, so that each Python worker starts warm.

Not in the runner's package: `python -m` would import that, and Beam with it, before logging is set up here.
"""

import gc
import logging

logging.basicConfig(level=logging.ERROR)  # before Beam is imported: it warns about what it was installed without

from pyspark.daemon import manager  # noqa: E402

from spark_jobs.beam_runner.transport.spark_worker import LogFormat  # noqa: E402

for handler in logging.getLogger().handlers:  # stderr, which Spark forwards to the driver's on a local master
    handler.setFormatter(LogFormat())

# PySpark collects garbage after each task. With Beam's 160,000 objects that is 80 ms of a core, more than a small task.
gc.freeze()

if __name__ == "__main__":
    manager()
