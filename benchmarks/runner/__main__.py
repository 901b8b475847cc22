"""How fast SparkRunner is, as ratios against peers that run in the same process on the same data.

    python -m benchmarks.runner [--only grouping] [--full] [--prism PATH] [--output json]

The parts, for --only:
    state     a sum per key in a stream, local and on Spark, against transformWithState
    windows   GroupByKey and CombinePerKey in windows of a stream, local and on Spark
    grouping  the same in a batch on Spark, against PySpark's RDDs, FnApiRunner and Prism
    epochs    what an epoch with little data costs, against an empty job of Spark
    batches   record batches through a Reshuffle, against partitionBy
    memory    the most memory of a grouping: a Python worker's, and that of all processes

Short by default (1 million pairs); --full takes 10 million. Batches and epochs are medians of warm runs, streams the
mean of their warm epochs. Prism, Beam's runner in Go, is a peer if there is a binary: --prism, $PRISM, or `prism` on
the PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam

from benchmarks.runner import batches, epochs, grouping, memory, state, windows
from benchmarks.runner.measure import Figure
from spark_jobs.session import spark_session

CONF = {"spark.python.authenticate.socketTimeout": "120s"}  # a busy machine is slow to start Python
NO_PRISM = f"""\
Prism is left out: there is no binary. With Go installed,
    go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}
makes one in ~/go/bin."""


def scenarios(full: bool, spark: Callable[[], Any], prism: str | None) -> dict[str, Callable[[], Iterator[Figure]]]:
    turns = 5 if full else 3
    return {
        "state": lambda: state.measure(spark(), epochs=12 if full else 6),
        "windows": lambda: windows.measure(spark(), epochs=12 if full else 6),
        "grouping": lambda: grouping.measure(spark(), 10_000_000 if full else 1_000_000, turns, prism),
        "epochs": lambda: epochs.measure(spark(), epochs=30 if full else 15),
        "batches": lambda: batches.measure(spark(), 2048 if full else 512, turns),
        "memory": lambda: memory.measure(10_000_000 if full else 1_000_000),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="PART", help="one part; may be repeated")
    parser.add_argument("--full", action="store_true", help="full sizes")
    parser.add_argument("--prism", metavar="PATH", help="the binary of Beam's runner in Go")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    prism = grouping.find_prism(options.prism)
    if prism is None:
        sys.stderr.write(NO_PRISM + "\n")
    chosen = scenarios(options.full, lambda: spark_session(cores=grouping.CORES, conf=CONF), prism)
    unknown = set(options.only or ()) - set(chosen)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(chosen)}")
    figures: list[Figure] = []
    for name, scenario in chosen.items():
        for figure in scenario() if not options.only or name in options.only else ():
            figures.append(figure)
            if options.output == "text":
                sys.stdout.write(figure.line() + "\n")
                sys.stdout.flush()
    if options.output == "json":
        rows = [{**vars(figure), "ratio": figure.ratio} for figure in figures]
        sys.stdout.write(json.dumps({"cores": os.cpu_count(), "prism": prism, "figures": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
