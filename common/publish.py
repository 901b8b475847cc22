"""Two-phase sinks: workers stage, one publisher makes an epoch's staged work visible, exactly once.

A worker-side step writes what it has (files, messages) to a place where nobody looks yet and emits a *staged
descriptor*: small bytes that say what was staged. The runner collects an epoch's descriptors in the epoch's manifest,
makes the manifest durable, and then calls the publisher. After a crash it calls the publisher again for the last
manifest: this is why `publish` is idempotent per `(job, number)` and why a descriptor, once in a manifest, must stand
for durable data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

PUBLISH_URN = "pipelines:publish:v1"


@dataclass(frozen=True)
class Epoch:
    """One commit of a job.

    `job` is the stable id of the checkpoint (a stream) or of the run (a batch); `number` grows by one per epoch.
    """

    job: str
    number: int


class Publisher(Protocol):
    """Makes staged work visible. Picklable and small; holds no secrets: those are read where `publish` runs."""

    def publish(self, epoch: Epoch, staged: Sequence[bytes]) -> Mapping[str, int]:
        """Publishes all of an epoch's descriptors, or none; a repeat for the same epoch changes nothing.

        `staged` may be empty and its order carries no meaning. Returns counters to add up, such as
        `{"online_rows": 12}`; a repeat may count again or return nothing.
        """
        ...
