"""Measurements of this package against the least possible, against others, and on a GPU; run as `python -m benchmarks.NAME`."""
