"""Avro, columnar: schemas to Arrow types, message bodies to record batches and back, Confluent framing."""
