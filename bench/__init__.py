"""Benchmarks: real processes on loopback, each figure beside a baseline taken in the same run."""
