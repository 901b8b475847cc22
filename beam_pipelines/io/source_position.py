"""Where a stream is in Kafka, out of what its runner keeps for the next epoch."""

from __future__ import annotations

from apache_beam.coders.coders import (
    FastPrimitivesCoder,
    FloatCoder,
    GlobalWindowCoder,
    LengthPrefixCoder,
    TupleCoder,
    VarIntCoder,
    WindowedValueCoder,
)

# Beam's encoding of what is left of a splittable DoFn's input: ((element, (restriction, watermark state)), size).
# The element of `ReadFromKafka` is the partition's number, the restriction an OffsetRange.
_ANYTHING = LengthPrefixCoder(FastPrimitivesCoder())  # runners prefix what has no coder of Beam's model
_REST = WindowedValueCoder(
    TupleCoder([TupleCoder([VarIntCoder(), TupleCoder([_ANYTHING, _ANYTHING])]), FloatCoder()]), GlobalWindowCoder()
)


def source_position(residual: bytes) -> tuple[int, int]:
    """Residual of `ReadFromKafka` -> (partition, the next offset to read)."""
    (partition, (restriction, _)), _ = _REST.decode(residual).value
    return int(partition), int(restriction.start)
