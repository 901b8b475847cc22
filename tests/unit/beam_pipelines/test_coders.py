"""Record batches as bytes."""

from __future__ import annotations

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam import coders

from beam_pipelines.coders import RecordBatchCoder

BATCH = pa.RecordBatch.from_pylist(
    [{"a": 1, "s": {"b": "x"}, "m": [("k", "v")]}, {"a": None, "s": None, "m": []}],
    schema=pa.schema(
        [("a", pa.int64()), ("s", pa.struct([("b", pa.string())])), ("m", pa.map_(pa.string(), pa.string()))]
    ),
)


@pytest.mark.parametrize("batch", [BATCH, BATCH.slice(1), BATCH.slice(0, 0), BATCH.replace_schema_metadata({"k": "v"})])
def test_a_batch_comes_back_with_its_schema(batch: pa.RecordBatch) -> None:
    coder = RecordBatchCoder()
    decoded = coder.decode(coder.encode(batch))
    assert decoded.equals(batch)
    assert decoded.schema.equals(batch.schema, check_metadata=True)


def test_a_slice_does_not_carry_its_parent() -> None:
    whole = pa.record_batch({"a": pa.array(range(100_000))})
    assert len(RecordBatchCoder().encode(whole.slice(5, 10))) < 1_000


def test_the_type_hint_means_the_coder() -> None:
    p = beam.Pipeline()
    keyed = p | beam.Create([1]) | beam.Map(lambda n: (n, BATCH)).with_output_types(tuple[int, pa.RecordBatch])
    coder = coders.registry.get_coder(keyed.element_type)
    assert isinstance(coder.value_coder(), RecordBatchCoder)
