"""Measurements side by side with the peers: `python -m benchmarks`. They print tables and assert nothing about time."""
