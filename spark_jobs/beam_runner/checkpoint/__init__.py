"""Manifests and files: what a job leaves from epoch to epoch, and what can be done with it."""
