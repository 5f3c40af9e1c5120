"""bounded: every queue has a bound, and a slow reader never delays another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from tests.validators.history import History, MemorySampled, Received, Sent


def bounded(
    history: History,
    *,
    rss_bytes: Mapping[str, int] | None = None,
    delay_s: float = float("inf"),
    slow: Collection[str] = (),
) -> Iterator[str]:
    """Processes that grew over a bound, and messages that came late to others than the slow clients."""
    for measured in history.of(MemorySampled):
        allowed = (rss_bytes or {}).get(measured.process)
        if allowed is not None and measured.rss_bytes > allowed:
            yield f"{measured.process} held {measured.rss_bytes >> 20} MiB of {allowed >> 20} MiB allowed"
    said = {(event.topic, event.id): event.at for event in history.of(Sent)}
    for heard in history.of(Received):
        at = said.get((heard.topic, heard.client_id))
        if at is not None and heard.client not in slow and heard.at - at > delay_s:
            yield f"{heard} came {heard.at - at:.3f} s after it was said"
