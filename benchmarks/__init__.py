"""Measurements of the whole, run by `make bench`. Figures are compared within a run, never across runs."""
