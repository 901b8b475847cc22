"""The pipelines: bronze, silver, gold, and the job that composes them."""
