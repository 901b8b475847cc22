"""Lists that cross processes: what a pickled end appends is what the test reads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms import ptransform

from tests.conformance.records import Records


class RecordsOnItsClass:
    all_records: list[Any] = []  # noqa: RUF012  as in Beam's test

    def record_dofn(self) -> Any: ...


def elsewhere(end: Any) -> Any:
    return pickle.loads(pickle.dumps(end))


def test_what_a_dofn_recorded_elsewhere_is_in_the_list_of_its_test(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.lend(RecordsOnItsClass)
    dofn = elsewhere(RecordsOnItsClass().record_dofn())
    for element in ("a", ("b", 1)):
        dofn.process(element)
    for _ in range(2):  # the second time there is nothing new
        records.read_back(beam.Pipeline())
    assert RecordsOnItsClass.all_records == ["a", ("b", 1)]


def test_what_a_pipeline_made_of_a_list_elsewhere_is_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptransform._MaterializedResult, "__reduce__", None)
    records, pipeline = Records(tmp_path), beam.Pipeline()
    records.patch_materialization()
    ptransform._allocate_materialized_pipeline(pipeline)
    first, second = (ptransform._allocate_materialized_result(pipeline) for _ in range(2))
    elsewhere(first).elements.append(1)
    elsewhere(second).elements.append(2)
    records.read_back(pipeline)
    assert (first.elements, second.elements) == ([1], [2])
