"""How far a job is, read from its checkpoint alone: by commands that do not run it, and by its next start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from apache_beam.portability.api import metrics_pb2

from spark_jobs.beam_runner.beam_internals import monitoring_infos
from spark_jobs.beam_runner.checkpoint.checkpoint import KEEP_MANIFESTS, Checkpoint
from spark_jobs.beam_runner.checkpoint.manifest import Manifest
from spark_jobs.beam_runner.errors import CheckpointError, way_back


def manifest_of(checkpoint: Checkpoint, epoch: int) -> Manifest:
    """Raises CheckpointError if it is not there, damaged, or of a newer format."""
    where = f"The manifest of epoch {epoch} of {checkpoint.url}"
    return Manifest.from_json(checkpoint.read_manifest(epoch), where, way_back(checkpoint.url))


def last_manifest(root: str) -> Manifest | None:
    """The newest committed manifest of a checkpoint; None if there is none yet."""
    return newest_manifest(Checkpoint(root))


def newest_manifest(checkpoint: Checkpoint) -> Manifest | None:
    """As `last_manifest`."""
    epoch = checkpoint.last_epoch()
    return None if epoch is None else manifest_of(checkpoint, epoch)


def files_to_roll_back(checkpoint: Checkpoint) -> set[str]:
    """Names of the data files of the manifests that garbage collection leaves. A damaged one has no way back."""
    files: set[str] = set()
    for epoch in checkpoint.epochs()[-KEEP_MANIFESTS:]:
        try:
            files |= manifest_of(checkpoint, epoch).live_files()
        except CheckpointError:
            continue
    return files


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
