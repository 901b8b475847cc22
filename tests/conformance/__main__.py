"""Beam's own test suites on SparkRunner, counted and compared with what is expected.

    python -m tests.conformance [--transport local|spark] [--mode batch|streaming] [--suite NAME ...]
        [--test PATTERN] [--output json]

Prints a table and writes build/conformance.json. Exits 1 if a test fails or is skipped and expected.toml does
not list it, or if one that it lists does not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.conformance import results as outcome
from tests.conformance.results import Result
from tests.conformance.suites import FOLDER, Suite, load_expected, load_suites

PROJECT = FOLDER.parent.parent
TRANSPORTS, MODES = ("local", "spark"), ("batch", "streaming")
SUITE_LIMIT_S = {"local": 900, "spark": 5400, "beam": 900}
TEST_LIMIT_S = {"local": 240, "spark": 900, "beam": 240}  # one test may run thirty pipelines
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"  # a suite's jobs are tiny: C2 would compile more than it saves


def run_suite(suite: Suite, transport: str, mode: str, pattern: str) -> list[Result]:
    """One process of pytest; its log goes to build/conformance/."""
    where = f"{transport}/{mode}"
    logs = PROJECT / "build" / "conformance"
    logs.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        report = Path(folder) / "report.jsonl"
        command = [
            *(sys.executable, "-m", "pytest", "-c", str(FOLDER / "beam.ini"), "--rootdir", str(PROJECT)),
            *("-p", "tests.conformance.plugin", f"--timeout={TEST_LIMIT_S[transport]}"),
            f"--conformance-transport={transport}",
            *(f"--conformance-mode={mode}", f"--conformance-report={report}"),
            *(f"--conformance-suite={suite.name}", f"--conformance-test={pattern}", "--pyargs", *suite.arguments()),
        ]
        path = os.pathsep.join(filter(None, [str(FOLDER / "stand_ins"), os.environ.get("PYTHONPATH", "")]))
        with open(logs / f"{suite.name}-{transport}-{mode}.log", "wb") as log:
            try:
                code = subprocess.run(
                    command,
                    cwd=PROJECT,
                    env={"JDK_JAVA_OPTIONS": QUICK_JVM, **os.environ, "PYTHONPATH": path},
                    stdout=log,
                    stderr=log,
                    timeout=SUITE_LIMIT_S[transport],
                    check=False,
                ).returncode
                end = "" if code in (0, 1, 2, 5) else f"exit code {code}"
            except subprocess.TimeoutExpired:
                end = f"the suite took longer than {SUITE_LIMIT_S[transport]} s"
        found = outcome.read_report(report, suite.name, where, end, pattern)
    seconds = time.monotonic() - started
    print(f"{suite.name} {where}: {len(found)} tests in {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> int:
    suites = load_suites()
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--transport", choices=[*TRANSPORTS, "beam"], action="append", help="default: local")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: both")
    parser.add_argument("--suite", choices=list(suites), action="append", help="default: all")
    parser.add_argument("--test", default="*", metavar="PATTERN", help="only the tests whose name matches")
    parser.add_argument("--jobs", type=int, default=0, help="suites at once; default: one for each core, on Spark one")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    parser.add_argument("--refresh", action="store_true", help="keep the results in tests/conformance/results.json")
    flags = parser.parse_args()
    transports, modes = flags.transport or ["local"], flags.mode or list(MODES)
    wanted = [suites[name] for name in flags.suite or suites]
    jobs = flags.jobs or (1 if "spark" in transports else os.cpu_count() or 2)
    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run_suite, s, t, m, flags.test) for t, m, s in itertools.product(transports, modes, wanted)]
        results = []
        for run in as_completed(runs):
            results += run.result()
            if flags.refresh:  # suite by suite: an hour on Spark is not lost to an interruption
                outcome.refresh_committed(run.result(), whole=flags.test == "*")
    full = PROJECT / "build" / "conformance.json"
    outcome.write_full(results, full)
    print(full.read_text(encoding="utf-8") if flags.output == "json" else outcome.as_table(results))
    found = outcome.surprises(results, load_expected(), whole=flags.test == "*")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
