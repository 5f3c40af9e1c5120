"""Latency histogram and its reported percentiles."""

from hdrh.histogram import HdrHistogram

PERCENTILES = (50.0, 95.0, 99.0, 99.9)


class Latencies:
    """Histogram from 1 µs to 10 minutes with three significant digits."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, 600_000_000, 3)

    def add_ns(self, latency_ns: int) -> None:
        """Record one latency."""
        self._histogram.record_value(max(1, latency_ns // 1000))

    def figures(self) -> dict[str, float]:
        """Return `{"p50_ms": …, …, "max_ms": …, "samples": …}`; only `samples` if there are none."""
        samples = self._histogram.get_total_count()
        if not samples:
            return {"samples": 0}
        named = {f"p{p:g}_ms": self._histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES}
        return {**named, "max_ms": self._histogram.get_max_value() / 1000, "samples": samples}
