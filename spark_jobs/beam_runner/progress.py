"""How far a job is, read from its checkpoint alone: by commands that do not run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from apache_beam.portability.api import metrics_pb2

from spark_jobs.beam_runner.beam_internals import monitoring_infos
from spark_jobs.beam_runner.checkpoint import Checkpoint
from spark_jobs.beam_runner.manifest import Manifest


def last_manifest(root: str) -> Manifest | None:
    """The newest committed manifest of a checkpoint; None if there is none yet."""
    checkpoint = Checkpoint(root)
    epoch = checkpoint.last_epoch()
    if epoch is None:
        return None
    return Manifest.from_json(checkpoint.read_manifest(epoch), f"manifest {epoch} of {root}")


def committed_counters(root: str) -> dict[str, int]:
    """User counters ('namespace/name') of a checkpoint, summed over steps; empty if there is none."""
    manifest = last_manifest(root)
    return {} if manifest is None else sum_counters(manifest.metrics)


def sum_counters(metrics: Mapping[str, Iterable[bytes]]) -> dict[str, int]:
    """User counters of encoded monitoring infos, summed over steps."""
    sums: Counter[str] = Counter()
    for encoded in metrics.values():
        for info in map(metrics_pb2.MonitoringInfo.FromString, encoded):
            if info.urn == monitoring_infos.USER_COUNTER_URN:
                name = f"{info.labels['NAMESPACE']}/{info.labels['NAME']}"
                sums[name] += monitoring_infos.extract_counter_value(info)
    return dict(sums)
