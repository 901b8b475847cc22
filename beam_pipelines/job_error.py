"""What is said of a job that failed: enough to go on, and nothing of a record's values."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

from common.errors import PipelineError

_STEP = re.compile(r"\[while running '([^']*)'")
# Errors of these packages are written by us: their messages hold no values.
_OURS = ("common.", "beam_pipelines.", "spark_jobs.")


def job_error(error: Exception, log: Path) -> PipelineError:
    """The error to show. What a library raised may quote a record: only its type and step are shown.

    The whole traceback goes to `log`, which only its owner can read.
    """
    text = "".join(traceback.format_exception(error))
    if isinstance(error, PipelineError) and error.code != "step_failed":
        return error
    log.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    steps = _STEP.findall(str(error))
    message = str(error).partition("\n")[0]
    if not message.startswith(_OURS):
        kind = message.partition(":")[0] if isinstance(error, PipelineError) else type(error).__name__
        message = f"{kind} in a step of the job"
    return PipelineError(message, code="step_failed", step=steps[-1] if steps else None, hint=f"less {log}")
