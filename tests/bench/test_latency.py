"""Percentiles; skipped if the extra `bench` is not installed."""

import pytest

pytest.importorskip("hdrh")
latency = pytest.importorskip("bench.loadgen.latency")


def test_percentiles_are_in_milliseconds_within_three_digits() -> None:
    """One sample for each millisecond from 1 to 1,000."""
    latencies = latency.Latencies()
    for milliseconds in range(1, 1001):
        latencies.add_ns(milliseconds * 1_000_000)
    figures = latencies.figures()
    assert figures["samples"] == 1000
    assert figures["p50_ms"] == pytest.approx(500, rel=0.002)
    assert figures["p99_ms"] == pytest.approx(990, rel=0.002)
    assert figures["max_ms"] == pytest.approx(1000, rel=0.002)


def test_no_samples_give_no_percentiles() -> None:
    """Only the count is returned."""
    assert latency.Latencies().figures() == {"samples": 0}
