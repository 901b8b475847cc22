"""Sources and sinks of the pipelines."""
