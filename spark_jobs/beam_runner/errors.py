"""Errors of the runner: each says what, where, and what to do next. Never an element's value."""

from __future__ import annotations

from typing import ClassVar

from common.errors import PipelineError

MORE_MEMORY = (
    "more --tasks, so that each holds less at a time; or more memory for each: fewer cores on a machine, or a larger "
    "spark.executor.pyspark.memory if it is set"
)
SHARED_PLACE = "--checkpoint=<a folder that the driver and all workers see at the same path, or gs://bucket/path>"
GOES_ON = "A job with a --checkpoint goes on from its last committed epoch, others begin anew."


class RunnerError(PipelineError):
    """Base of the runner's errors. `hint` is the way out."""

    CODE: ClassVar[str] = "runner"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, code=self.CODE, hint=hint)


class UnsupportedPipelineError(RunnerError):
    """The pipeline asks for something the runner does not have; raised before anything starts, all gaps at once."""

    CODE = "unsupported_pipeline"

    def __init__(self, gaps: list[str]) -> None:
        super().__init__("SparkRunner cannot run this pipeline: " + "; ".join(sorted(gaps)) + ".")
        self.gaps = gaps


class FencedError(RunnerError):
    """Another driver committed the epoch that this one was about to commit."""

    CODE = "fenced"


class WorkerLostError(RunnerError):
    """A process that worked on the epoch died, or took its results with it; no user function raised.

    The epoch is run again from the last manifest, at most `--epoch_attempts` times in all.
    """

    CODE = "worker_lost"


class SessionLostError(RunnerError):
    """The Spark session of the job is gone: its JVM died, or somebody stopped it."""

    CODE = "session_lost"


class StepError(RunnerError, RuntimeError):
    """A user's function raised in a worker. The message ends with Beam's "[while running 'step']".

    A RuntimeError, as Beam's portable runners make of whatever a worker raised.
    `worker_traceback` is the Python traceback in the worker, without the JVM's frames around it.
    """

    CODE = "step_failed"

    def __init__(self, message: str, worker_traceback: str) -> None:
        super().__init__(message, hint=MORE_MEMORY if "MemoryError" in message else None)
        self.worker_traceback = worker_traceback
        self.add_note(worker_traceback)

    @classmethod
    def from_spark(cls, error: Exception) -> StepError:
        """What the worker said, taken out of the exception that Spark wraps it in."""
        text = str(error)
        start = text.rfind("Traceback (most recent call last)")
        if start < 0:
            return cls(text.strip().partition("\n")[0], text)
        lines = [line for line in text[start:].splitlines() if not line.startswith(("\tat ", "\t..."))]
        while lines and not lines[-1].strip():
            lines.pop()
        kept = "\n".join(lines).split("\n\n")[0].splitlines()
        # The exception follows the last frame; its message may have several lines, and a hint among them is indented.
        last_frame = max((i for i, line in enumerate(kept) if line.startswith('  File "')), default=0)
        rest = [i for i, line in enumerate(kept) if i > last_frame and not line.startswith(" ")]
        return cls("\n".join(kept[rest[0] :] if rest else kept[-1:]).strip(), "\n".join(kept))


class CheckpointError(RunnerError):
    """A manifest or state file is missing, damaged, or belongs to another pipeline."""

    CODE = "bad_checkpoint"


class CheckpointStoreError(RunnerError):
    """The place of a checkpoint cannot be used: no access, no bucket, no answer."""

    CODE = "checkpoint_store"


def worker_error(error: Exception) -> RunnerError:
    """What a worker raised, out of Spark's exception: an error of the runner as itself, any other as StepError."""
    failed = StepError.from_spark(error)
    name, _, said = failed.message.partition(": ")
    kind = _RAISED_BY_WORKERS.get(name)
    if kind is None:
        return failed
    message, _, rest = said.partition("\n  next: ")
    hint, _, where = rest.partition("\n")
    found = kind("\n".join(filter(None, [message, where])), hint=hint or None)
    found.add_note(failed.worker_traceback)
    return found


_RAISED_BY_WORKERS: dict[str, type[RunnerError]] = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (CheckpointError, CheckpointStoreError, RunnerError)
}


def way_back(root: str) -> str:
    """The hint of a damaged checkpoint."""
    return (
        f"python -m spark_jobs.beam_runner checkpoint verify {root}    # names the newest whole epoch; "
        "then: checkpoint rollback --to-epoch N"
    )
