"""The pipelines' steps: DoFns over record batches, one family per file, each with a pure vectorised core."""
