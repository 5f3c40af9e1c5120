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
    """Report processes over their memory bound, and messages that clients other than `slow` received late."""
    for measured in history.of(MemorySampled):
        allowed = (rss_bytes or {}).get(measured.process)
        if allowed is not None and measured.rss_bytes > allowed:
            yield f"{measured.process} used {measured.rss_bytes >> 20} MiB, allowed are {allowed >> 20} MiB"
    sent = {(event.topic, event.id): event.at for event in history.of(Sent)}
    for received in history.of(Received):
        at = sent.get((received.topic, received.client_id))
        if at is not None and received.client not in slow and received.at - at > delay_s:
            yield f"{received} arrived {received.at - at:.3f} s after it was sent"
