"""Other simulators beside escc, on the same layers, in the same run: ``python -m benchmarks.peers``."""
