"""Errors of the runner: each says what, where, and what to do next. Never an element's value."""

from __future__ import annotations


class RunnerError(Exception):
    """Base of the runner's errors. `hint` is the way out."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} {hint}" if hint else message)
        self.hint = hint


class UnsupportedPipelineError(RunnerError):
    """The pipeline asks for something the runner does not have; raised before anything starts, all gaps at once."""

    def __init__(self, gaps: list[str]) -> None:
        super().__init__("SparkRunner cannot run this pipeline: " + "; ".join(sorted(gaps)) + ".")
        self.gaps = gaps


class FencedError(RunnerError):
    """Another driver committed the epoch that this one was about to commit."""


class CheckpointError(RunnerError):
    """A manifest or state file is missing, damaged, or belongs to another pipeline."""
