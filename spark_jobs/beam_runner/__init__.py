"""SparkRunner: portable Beam pipelines in Python on Spark, as a batch or as an exactly-once stream.

    from spark_jobs.beam_runner import SparkRunner
    with beam.Pipeline(runner=SparkRunner()) as p: ...

How it works is in docs/architecture.md and docs/adr/0001-runner.md.
"""

from spark_jobs.beam_runner.options import SparkRunnerOptions
from spark_jobs.beam_runner.runner import SparkRunner, SparkRunnerResult

__all__ = ["SparkRunner", "SparkRunnerOptions", "SparkRunnerResult"]
