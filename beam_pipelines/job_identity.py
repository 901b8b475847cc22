"""Which job a checkpoint belongs to: what may not change while its state lives on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import ConfigError
from spark_jobs.beam_runner.checkpoint.store import open_store

FILE = "job.json"


@dataclass(frozen=True)
class JobIdentity:
    """Settings that state and position depend on, and that no runner can see.

    topic: offsets of one topic mean nothing in another.
    buckets: an event id is remembered in its bucket; in another number of buckets it would be looked for elsewhere,
        found new, and be in silver twice, with accounts that balance.
    warehouse: the counters of the checkpoint are those of its tables.
    """

    domain: str
    topic: str
    warehouse: str
    buckets: int


def claim_checkpoint(root: str | Path, job: JobIdentity) -> None:
    """Notes the job in a new checkpoint; raises ConfigError `other_job` if it is another's."""
    store = open_store(root)
    store.prepare([""])
    if not store.put_if_absent(FILE, (json.dumps(asdict(job)) + "\n").encode()):
        require_same_job(root, job)


def require_same_job(root: str | Path, job: JobIdentity) -> None:
    """Raises ConfigError `other_job` if the checkpoint is another job's; one that is nobody's is no error."""
    try:
        known = json.loads(open_store(root).read(FILE))
    except FileNotFoundError:
        return
    changed = [
        f"{name} was {known.get(name)!r}, is {ours!r}" for name, ours in asdict(job).items() if known.get(name) != ours
    ]
    if changed:
        raise ConfigError(
            f"checkpoint {root} belongs to another job: {'; '.join(changed)}",
            code="other_job",
            hint="give back the old values, or start anew with another --checkpoint and another --warehouse",
        )
