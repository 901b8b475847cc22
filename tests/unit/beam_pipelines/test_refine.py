"""Flat, normalised, enriched."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from beam_pipelines.transforms.refine import enrich, flatten, normalise, read_reference
from common.domain import Normalise, Reference
from common.errors import PipelineError


def test_nested_records_become_columns_and_maps_stay() -> None:
    inner = pa.struct([("x", pa.int64())])
    schema = pa.schema([("a", pa.struct([("b", inner), ("c", pa.string())])), ("m", pa.map_(pa.string(), pa.string()))])
    rows = pa.RecordBatch.from_pylist(
        [
            {"a": {"b": {"x": 1}, "c": "p"}, "m": [("k", "v")]},
            {"a": {"b": None, "c": "q"}, "m": []},
            {"a": None, "m": None},
        ],
        schema=schema,
    )
    assert flatten(rows).to_pylist() == [
        {"a_b_x": 1, "a_c": "p", "m": [("k", "v")]},
        {"a_b_x": None, "a_c": "q", "m": []},
        {"a_b_x": None, "a_c": None, "m": None},
    ]


def test_text_is_trimmed_before_it_is_lowered_and_null_stays() -> None:
    rows = pa.record_batch({"a": [" ÄB ", None], "b": [" X ", "y"]})
    found = normalise(rows, Normalise(lower=("a",), trim=("a",)))
    assert found.to_pydict() == {"a": ["äb", None], "b": [" X ", "y"]}


def test_enrich_is_a_left_join() -> None:
    table = pa.record_batch({"id": ["1", "2"], "name": ["one", None]})
    rows = pa.record_batch({"id": ["2", "1", "9", None], "n": [1, 2, 3, 4]})
    assert enrich(rows, table, "id").column("name").to_pylist() == [None, "one", None, None]


def reference(tmp_path: Path, text: str) -> Reference:
    file = tmp_path / "videos.csv"
    file.write_text(text)
    return Reference("videos", "video_id", file, ("author_id",))


def test_reference_values_are_text_and_empty_is_null(tmp_path: Path) -> None:
    table = read_reference(reference(tmp_path, "author_id,extra,video_id\n007,x,01\n,y,02\n"))
    assert table.to_pydict() == {"video_id": ["01", "02"], "author_id": ["007", None]}


def test_an_empty_reference_matches_nothing(tmp_path: Path) -> None:
    table = read_reference(reference(tmp_path, "video_id,author_id\n"))
    assert enrich(pa.record_batch({"video_id": ["1"]}), table, "video_id").column("author_id").to_pylist() == [None]


@pytest.mark.parametrize(
    "text", ["video_id,author_id\n1,a\n1,b\n", "video_id,writer\n1,a\n", ""], ids=["double key", "no column", "empty"]
)
def test_a_reference_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PipelineError) as error:
        read_reference(reference(tmp_path, text))
    assert error.value.code == "bad_reference"


def test_a_missing_reference_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="FileNotFoundError"):
        read_reference(Reference("videos", "video_id", tmp_path / "none.csv", ("author_id",)))
