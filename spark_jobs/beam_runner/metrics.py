"""Adding up metrics: what tasks report for an epoch, and epochs since the start of a checkpoint.

Only reports of attempts that an epoch is made of are added, so that metrics count each element once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from apache_beam.coders import IterableCoder, StrUtf8Coder
from apache_beam.metrics import monitoring_infos
from apache_beam.metrics.cells import HistogramData
from apache_beam.portability.api import metrics_pb2

_strings = IterableCoder(StrUtf8Coder())


def consolidate(infos: Iterable[metrics_pb2.MonitoringInfo]) -> list[metrics_pb2.MonitoringInfo]:
    """One info for each metric: sums, distributions, unions of sets, tries and histograms, the latest gauge.

    Beam's own `consolidate` knows sums and distributions only. Of types that are not known, such as the progress of
    a bundle, the last one is kept.
    """
    merged: dict[object, metrics_pb2.MonitoringInfo] = {}
    for info in monitoring_infos.consolidate(infos):
        key = (info.type, monitoring_infos.to_key(info))
        if key in merged and info.type in _MERGED:
            info.payload = _MERGED[info.type](merged[key], info)
        merged[key] = info
    return list(merged.values())


def any_elements(infos: Iterable[metrics_pb2.MonitoringInfo], besides: Collection[str]) -> bool:
    """Whether a bundle had elements in any collection but these."""
    return any(
        info.urn == monitoring_infos.ELEMENT_COUNT_URN
        and info.labels[monitoring_infos.PCOLLECTION_LABEL] not in besides
        and monitoring_infos.extract_counter_value(info) > 0
        for info in infos
    )


def user_metrics(metrics: Mapping[str, Iterable[bytes]]) -> dict[object, object]:
    """Values of the users' metrics by stage and metric: of gauges without the time at which they were set."""
    values: dict[object, object] = {}
    for stage, infos in metrics.items():
        for info in map(metrics_pb2.MonitoringInfo.FromString, infos):
            if monitoring_infos.is_user_monitoring_info(info):
                value = monitoring_infos.extract_metric_result_map_value(info)
                key = (stage, monitoring_infos.to_key(info))
                values[key] = value.value if monitoring_infos.is_gauge(info) else value
    return values


def _union(a: metrics_pb2.MonitoringInfo, b: metrics_pb2.MonitoringInfo) -> bytes:
    both: set[str] = monitoring_infos.extract_string_set_value(a) | monitoring_infos.extract_string_set_value(b)
    return bytes(_strings.encode(sorted(both)))


def _latest(a: metrics_pb2.MonitoringInfo, b: metrics_pb2.MonitoringInfo) -> bytes:
    return bytes(max(a, b, key=lambda info: monitoring_infos.extract_gauge_value(info)[0]).payload)


def _trie(a: metrics_pb2.MonitoringInfo, b: metrics_pb2.MonitoringInfo) -> bytes:
    left, right = monitoring_infos.extract_bounded_trie_value(a), monitoring_infos.extract_bounded_trie_value(b)
    return bytes(left.combine(right).to_proto().SerializeToString(deterministic=True))


def _histogram(a: metrics_pb2.MonitoringInfo, b: metrics_pb2.MonitoringInfo) -> bytes:
    left, right = (HistogramData.from_proto(metrics_pb2.HistogramValue.FromString(info.payload)) for info in (a, b))
    return bytes(left.combine(right).to_proto().SerializeToString(deterministic=True))


_MERGED: dict[str, Callable[[metrics_pb2.MonitoringInfo, metrics_pb2.MonitoringInfo], bytes]] = {
    monitoring_infos.STRING_SET_TYPE: _union,
    monitoring_infos.LATEST_INT64_TYPE: _latest,
    monitoring_infos.BOUNDED_TRIE_TYPE: _trie,
    monitoring_infos.HISTOGRAM_TYPE: _histogram,
}
