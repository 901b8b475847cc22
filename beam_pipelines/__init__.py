"""The pipelines, their transforms, sources and sinks, and the command line. Beam and `common`; never Spark."""
