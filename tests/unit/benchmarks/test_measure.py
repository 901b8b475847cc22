"""What the benchmarks of the runner make of what they measured."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from benchmarks.runner.measure import (
    JVM,
    PYTHON,
    Cost,
    Figure,
    by_kind,
    largest,
    median_costs,
    medians,
    number,
    processor_seconds_by_kind,
    proportional_mib,
)
from benchmarks.runner.memory import watched
from benchmarks.runner.rates import rate_of


def test_a_line_has_the_ratio_of_the_two_figures() -> None:
    line = Figure("state", "value state", 70_000.4, "/s", ">= 60,000/s", "peer, 50,000 keys", 2_500).line()
    assert "70,000 /s" in line
    assert "28.00 x peer, 50,000 keys (2,500)" in line
    assert line.endswith("[target: >= 60,000/s]")
    assert Figure("state", "alone", 1, "s").ratio is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.04812, "0.04812"), (12.3456, "12.35"), (1234.5, "1,234"), (7.1e4, "71,000")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_rate_is_of_the_epochs_after_the_first_reading() -> None:
    assert rate_of([12.0, 13.0, 14.0], size=50) == 50


def test_the_largest_sample_is_that_with_the_largest_sum() -> None:
    samples = [{JVM: 5.0, PYTHON: 1.0}, {JVM: 3.0, PYTHON: 4.0}, {JVM: 0.0, PYTHON: 0.0}]
    assert largest(samples) == {JVM: 3.0, PYTHON: 4.0}


def test_medians_are_of_each_kind() -> None:
    assert medians([{JVM: 1, PYTHON: 9}, {JVM: 5, PYTHON: 2}, {JVM: 2, PYTHON: 3}]) == {JVM: 2, PYTHON: 3}


def test_the_cost_of_a_work_is_of_all_kinds_of_processes() -> None:
    assert Cost(9, {JVM: 1.5, PYTHON: 2}).cores == 3.5


def test_works_take_turns_and_the_first_two_are_not_counted() -> None:
    calls: list[str] = []
    costs = median_costs([lambda: calls.append("a"), lambda: calls.append("b")], turns=2)
    assert calls == ["a", "b"] * 4
    assert [set(cost.kinds) for cost in costs] == [{JVM, PYTHON}] * 2


def test_processes_below_this_one_count() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        seen: list[int] = []

        def amount(process: psutil.Process) -> float:
            seen.append(process.pid)
            return 2

        assert sum(by_kind(psutil.Process(), amount).values()) == 2 * len(seen)
        assert {os.getpid(), child.pid} <= set(seen)
        child.communicate(b"\n")


def test_a_process_that_has_ended_has_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = psutil.Process(child.pid)
        child.wait()
    assert proportional_mib(process) == {JVM: 0, PYTHON: 0}


def test_this_process_takes_time_and_memory() -> None:
    assert processor_seconds_by_kind()[PYTHON] > 0
    assert proportional_mib(psutil.Process())[PYTHON] > 1


def test_the_memory_of_a_command_is_watched_while_it_runs() -> None:
    output, together = watched([sys.executable, "-c", "import time; held = b'x' * (50 << 20); time.sleep(2); print(7)"])
    assert output == "7\n"
    assert 50 < together[PYTHON] < 500


def test_a_command_that_fails_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        watched([sys.executable, "-c", "import sys; sys.exit(3)"])
