"""From a portable pipeline to a plan: pure data, made and compared without Spark."""
