"""A batch whose step eats until it is out of memory: killed, as by the kernel, or at the limit of Spark's workers.

python -m tests.faults.hungry_job kill|limit
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from common.errors import PipelineError
from spark_jobs.beam_runner import SparkRunner

LIMIT = "--spark_conf=spark.executor.pyspark.memory=3g"
BLOCK = 128 << 20


def main(how: str) -> None:
    def eat(pair: tuple[str, Any]) -> Any:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        eaten = []
        while how == "limit":
            eaten.append(bytearray(BLOCK))
        return pair

    flags = ["--tasks=2", "--epoch_attempts=2", *([] if how == "kill" else [LIMIT])]
    p = beam.Pipeline(runner=SparkRunner(), options=PipelineOptions(flags))
    pairs = p | beam.Create([("a", 1), ("b", 2)]) | "first group" >> beam.GroupByKey()
    _ = pairs | "eat" >> beam.Map(eat) | "second group" >> beam.GroupByKey() | "end" >> beam.Map(lambda pair: pair)
    try:
        p.run()
    except PipelineError as error:
        print(f"{error.code}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
