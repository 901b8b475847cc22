"""The one family of errors that a user sees: what went wrong, where, and what to type next.

Messages never hold a record's values: they may be personal data.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where a record came from in Kafka."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class PipelineError(Exception):
    """Base of the project's errors.

    `code` is stable (for scripts), `step` the label of the pipeline step or command, `origin` the record, `hint` the
    next command to type.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        step: str | None = None,
        origin: Origin | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.step, self.origin, self.hint = message, code, step, origin, hint

    def __str__(self) -> str:
        where = "".join(f" [{part}]" for part in (self.step, self.origin) if part is not None)
        return f"{self.message}{where}" + (f"\n  next: {self.hint}" if self.hint else "")


class ConfigError(PipelineError):
    """A setting or argument is missing or wrong. The command line turns it into exit code 2."""
