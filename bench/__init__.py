"""Benchmarks of real processes on loopback, each result beside a baseline from the same run."""
