"""Measurements of the whole, run by `make bench`. Figures of one run are compared with each other, never across runs."""
