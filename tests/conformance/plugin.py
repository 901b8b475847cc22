"""pytest plugin: Beam's own test modules with SparkRunner where they would take Beam's default runner.

    PYTHONPATH=tests/conformance/stand_ins python -m pytest -c tests/conformance/beam.ini -p tests.conformance.plugin \\
        --conformance-transport=local --conformance-mode=batch --conformance-report=build/util.jsonl \\
        --pyargs apache_beam.transforms.util_test

`Pipeline.__init__` is patched: a missing runner, or one of Beam's in-process runners by name or instance, becomes
SparkRunner. A pipeline that names any other runner keeps it. Each test leaves one line in the report, with the number
of pipelines that really ran on SparkRunner: a test without any proves nothing about it.

Transport `beam` leaves the runners alone; it shows which tests fail in this environment whatever the runner.
"""

from __future__ import annotations

import inspect
import json
import os
import unittest
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.testing.test_pipeline import TestPipeline

from spark_jobs.beam_runner import SparkRunner, SparkRunnerOptions
from spark_jobs.beam_runner.driver import EpochInfo
from tests.conformance.records import Records
from tests.conformance.suites import Suite, load_suites

# By class name: what `create_runner` makes of 'DirectRunner' and 'PrismRunner', and what tests build themselves.
SWAPPED_RUNNERS = frozenset(
    [
        "DirectRunner",
        "SwitchingDirectRunner",
        "BundleBasedDirectRunner",
        "TestDirectRunner",
        "FnApiRunner",
        "PrismRunner",
    ]
)
TASKS = 2
STREAM_ENDS_WITHIN_S = {"local": 60, "spark": 600}


@dataclass
class Record:
    """What one test did. `ours` and `others` count pipelines that were run, `built` those made with SparkRunner."""

    test: str
    outcome: str = "unfinished"
    message: str = ""
    seconds: float = 0.0
    ours: int = 0
    others: int = 0
    built: int = 0
    validates_runner: bool = False


@dataclass
class Harness:
    transport: str
    mode: str
    records: Records
    one_task: frozenset[str] = frozenset()  # tests that assume one bundle, see suites.toml
    unskip: frozenset[str] = frozenset()  # tests that run although Beam skips them, see suites.toml
    current: Record = field(default_factory=lambda: Record("collection"))


class StreamDidNotEndError(AssertionError):
    """A stream whose sources are bounded went on."""


class ConformanceRunner(SparkRunner):
    """SparkRunner that counts its runs and waits for streams, as Beam's in-process runners do."""

    def __init__(self, harness: Harness, *, is_drain: bool) -> None:
        super().__init__(on_epoch=self._stop_if_abandoned, is_drain=is_drain)
        self._harness = harness
        self._test = harness.current

    def _stop_if_abandoned(self, _: EpochInfo) -> None:
        if self._harness.current is not self._test:
            raise StreamDidNotEndError("the test that started this pipeline is over")

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        self._harness.current.ours += 1
        self._test = self._harness.current
        flags = options.view_as(SparkRunnerOptions)
        flags.transport = self._harness.transport
        flags.driver_epochs_below_ms = 0  # small epochs must not go round Spark
        flags.tasks = 1 if self._test.test in self._harness.one_task else TASKS
        if flags.transport == "spark":
            _stop_unfit_session(flags.tasks)
        result = super().run_pipeline(pipeline, options)
        if options.view_as(StandardOptions).streaming:
            limit_s = STREAM_ENDS_WITHIN_S[self._harness.transport]
            result.wait_until_finish(limit_s * 1000)
            if result.state == "RUNNING":
                result.request_stop()
                raise StreamDidNotEndError(f"the stream did not end within {limit_s} s")
        self._harness.records.read_back(pipeline)
        return result


def _stop_unfit_session(cores: int) -> None:
    """One task means one worker process, too, and a new one: what it keeps in variables starts with the pipeline."""
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    if session is not None and (cores == 1 or session.sparkContext.master != f"local[{cores}]"):
        session.stop()


def _is_swapped(runner: Any, options: PipelineOptions | None) -> bool:
    if runner is None and options is not None:
        runner = options.view_as(StandardOptions).runner
    if runner is None:
        return True
    name = runner.rpartition(".")[2] if isinstance(runner, str) else type(runner).__name__
    return name in SWAPPED_RUNNERS


def patch_pipelines(harness: Harness) -> None:
    """Makes every new pipeline of this process run on SparkRunner, as the module's docstring says."""
    init, run = beam.Pipeline.__init__, beam.Pipeline.run

    def patched_init(
        self: Any,
        runner: Any = None,
        options: PipelineOptions | None = None,
        argv: list[str] | None = None,
        display_data: Any = None,
    ) -> None:
        if argv is not None and options is None:
            options = PipelineOptions(argv)
        if harness.transport != "beam" and (options is None or isinstance(options, PipelineOptions)):
            if _is_swapped(runner, options):
                runner = ConformanceRunner(harness, is_drain=getattr(runner, "_is_drain", False))
            if harness.mode == "streaming" and isinstance(runner, ConformanceRunner):
                options = PipelineOptions() if options is None else options
                options.view_as(StandardOptions).streaming = True
        init(self, runner, options, None, display_data)
        harness.current.built += isinstance(runner, ConformanceRunner)

    def patched_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self.runner, ConformanceRunner):
            harness.current.others += 1
            return run(self, *args, **kwargs)
        # The pipeline is carried over as a proto anyway: Beam's own portable runners are spared the round trip, too.
        return run(self, test_runner_api=False)

    beam.Pipeline.__init__, beam.Pipeline.run = patched_init, patched_run
    if harness.transport == "spark":
        harness.records.patch_materialization()


class Reporter:
    """Writes one JSON line for each test when it starts and one when it has ended: a crash shows in which it was."""

    def __init__(self, harness: Harness, path: Path) -> None:
        self._harness, self._file = harness, open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def _write(self) -> None:
        self._file.write(json.dumps(asdict(self._harness.current)) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        if self._harness.transport == "spark" and isinstance(item, pytest.Function):
            self._harness.records.lend(item.cls)
        record = self._harness.current = Record(test_id(item))
        record.validates_runner = item.get_closest_marker("it_validatesrunner") is not None
        self._write()
        if record.test in self._harness.unskip:
            TestPipeline.pytest_test_pipeline_options = "--runner=DirectRunner"
        try:
            return (yield)
        finally:
            self._write()
            self._harness.current = Record("between tests")
            TestPipeline.pytest_test_pipeline_options = None
            os.chdir(item.config.rootpath)  # one test leaves it where it failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record = self._harness.current
        record.seconds = round(record.seconds + report.duration, 3)
        if report.failed:
            record.outcome, record.message = "failed", _last_line(report.longreprtext)
        elif report.skipped and record.outcome != "failed":
            record.outcome = "skipped"
            record.message = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext)
        elif report.when == "call" and record.outcome == "unfinished":
            record.outcome = "passed"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.passed:
            return
        outcome = "failed" if report.failed else "skipped"
        text = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else _last_line(report.longreprtext)
        name = report.nodeid.partition("apache_beam/")[2].removesuffix(".py").replace("/", ".")
        self._file.write(json.dumps(asdict(Record(f"{name}::import", outcome, text, built=report.failed))) + "\n")


def test_id(item: pytest.Item) -> str:
    """'transforms.util_test::ReshuffleTest::test_reshuffle': the same wherever Beam is installed."""
    module = item.getparent(pytest.Module)
    name = module.obj.__name__ if module is not None else ""
    return "::".join([name.removeprefix("apache_beam."), *item.nodeid.split("::")[1:]])


def _last_line(text: str) -> str:
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
    return (errors[0] if errors else text.strip().rpartition("\n")[2])[:500]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--conformance-transport", choices=["local", "spark", "beam"], default="local")
    group.addoption("--conformance-mode", choices=["batch", "streaming"], default="batch")
    group.addoption("--conformance-report", required=True)
    group.addoption("--conformance-suite", default="", help="the suite of suites.toml whose settings apply")
    group.addoption("--conformance-test", default="*", help="run only the tests that match this pattern")


def _suite(config: pytest.Config) -> Suite:
    name = config.getoption("--conformance-suite")
    return load_suites()[name] if name else Suite("", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    pattern, suite = config.getoption("--conformance-test"), _suite(config)
    items[:] = [item for item in items if fnmatchcase(test_id(item), pattern)]
    items.sort(key=lambda item: test_id(item) in suite.one_task)  # last: on Spark they have a session of their own
    for item in items:
        if reason := suite.skip.get(test_id(item)):
            item.add_marker(pytest.mark.skip(reason=f"ours: {reason}"))
    _unskip([item for item in items if test_id(item) in suite.unskip])
    missing = suite.unskip.keys() - {test_id(item) for item in items}
    if missing and pattern == "*":
        raise pytest.UsageError(f"suites.toml wants to run tests that do not exist: {sorted(missing)}")


def _unskip(items: list[Any]) -> None:
    """Takes from the tests what Beam skips them for in its code: their decorators, and the names of their classes."""
    for item in items:
        if not is_skipped(item.cls(item.name)):
            raise pytest.UsageError(f"suites.toml lists {test_id(item)} as one that Beam skips, but it does not")
    for item in items:
        item.obj = without_skips(item.obj.__func__).__get__(item.instance)
        item.cls.__name__ = f"{item.cls.__qualname__}OnSparkRunner"


def is_skipped(test: unittest.TestCase) -> bool:
    result = unittest.TestResult()
    unittest.TestSuite([test]).run(result)
    return bool(result.skipped)


def without_skips(function: Any) -> Any:
    """A test's function without its decorators, but for the one that hands it its parameters."""
    return inspect.unwrap(function, stop=lambda f: f.__globals__["__name__"].startswith("parameterized"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "it_validatesrunner: Beam's marker of the tests that every runner has to pass")
    report = Path(config.getoption("--conformance-report"))
    harness = Harness(
        config.getoption("--conformance-transport"),
        config.getoption("--conformance-mode"),
        Records(report.parent),
        frozenset(_suite(config).one_task),
        frozenset(_suite(config).unskip),
    )
    patch_pipelines(harness)
    config.pluginmanager.register(Reporter(harness, report))
