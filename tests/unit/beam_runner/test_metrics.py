"""Adding up metrics of every kind that Beam Python has."""

from __future__ import annotations

from typing import Any

from apache_beam.metrics import monitoring_infos
from apache_beam.metrics.cells import BoundedTrieData, DistributionData, GaugeData, HistogramCell
from apache_beam.portability.api import metrics_pb2
from apache_beam.utils.histogram import LinearBucket

from spark_jobs.beam_runner.metrics import consolidate, user_metrics


def only(*infos: metrics_pb2.MonitoringInfo) -> Any:
    (merged,) = consolidate(infos)
    return merged


def test_counters_are_summed_for_each_step() -> None:
    infos = [
        monitoring_infos.int64_user_counter("n", "c", value, step) for value, step in ((1, "a"), (2, "b"), (4, "a"))
    ]
    sums = {info.labels["PTRANSFORM"]: monitoring_infos.extract_counter_value(info) for info in consolidate(infos)}
    assert sums == {"a": 5, "b": 2}


def test_distributions_are_merged() -> None:
    one = monitoring_infos.int64_user_distribution("n", "d", DistributionData(7, 2, 3, 4), "a")
    two = monitoring_infos.int64_user_distribution("n", "d", DistributionData(1, 1, 1, 1), "a")
    assert monitoring_infos.extract_distribution(only(one, two)) == (3, 8, 1, 4)


def test_of_gauges_the_latest_counts_whatever_the_order() -> None:
    old = monitoring_infos.int64_user_gauge("n", "g", GaugeData(1, timestamp=10.0), "a")
    new = monitoring_infos.int64_user_gauge("n", "g", GaugeData(2, timestamp=20.0), "a")
    for order in ((old, new), (new, old)):
        assert monitoring_infos.extract_gauge_value(only(*order))[1] == 2


def test_string_sets_and_tries_are_united() -> None:
    sets = [monitoring_infos.user_set_string("n", "s", {*names}, "a") for names in ("ab", "bc", "d")]
    assert monitoring_infos.extract_string_set_value(only(*sets)) == {"a", "b", "c", "d"}
    tries = []
    for path in (("x", "y"), ("x", "z"), ("w",)):
        tries.append(monitoring_infos.user_bounded_trie("n", "t", BoundedTrieData(singleton=path), "a"))
    assert {path[:-1] for path in monitoring_infos.extract_bounded_trie_value(only(*tries)).flattened()} == {
        ("x", "y"),
        ("x", "z"),
        ("w",),
    }


def test_histograms_are_added() -> None:
    infos = []
    for values in ((1, 2, 3), (50, 60)):
        cell = HistogramCell(LinearBucket(0, 10, 10))
        for value in values:
            cell.update(value)
        infos.append(monitoring_infos.user_histogram("n", "h", cell.get_cumulative(), "a"))
    assert monitoring_infos.extract_histogram_value(only(*infos)).histogram.total_count() == 5


def test_of_what_is_not_known_the_last_is_kept_so_that_manifests_do_not_grow() -> None:
    infos = [
        metrics_pb2.MonitoringInfo(urn="beam:metric:unknown:v1", type="beam:metrics:unknown:v1", payload=bytes([n]))
        for n in range(5)
    ]
    assert only(*infos).payload == bytes([4])


def test_a_metric_that_says_the_same_again_has_not_changed() -> None:
    def gauge(value: int, second: float) -> metrics_pb2.MonitoringInfo:
        return monitoring_infos.int64_user_gauge("n", "g", GaugeData(value, timestamp=second), "a")

    def names(*values: str) -> metrics_pb2.MonitoringInfo:
        return monitoring_infos.user_set_string("n", "s", set(values), "a")

    def changed(*infos: metrics_pb2.MonitoringInfo) -> bool:
        before = [gauge(7, 10.0), names("b", "a")]
        after = consolidate([*before, *infos])
        old, new = ({"step": tuple(info.SerializeToString() for info in some)} for some in (before, after))
        return user_metrics(old) != user_metrics(new)

    assert not changed()
    assert not changed(gauge(7, 20.0), names("a"), monitoring_infos.int64_counter("runner's", 1, labels={}))
    assert changed(gauge(8, 20.0))
    assert changed(names("c"))
    assert changed(monitoring_infos.int64_user_counter("n", "c", 1, "a"))
