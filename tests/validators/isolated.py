"""isolated: no operation of one tenant reveals or reaches anything of another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.validators.history import Acked, History, Received, Sent, TopicStarted, tenant_of


def isolated(history: History) -> Iterator[str]:
    """Report topics and texts of one tenant in clients and logs of another."""
    senders: dict[str, set[str]] = defaultdict(set)
    for sent in history.of(Sent):
        senders[sent.content].add(tenant_of(sent.client))
    for event in history.of(TopicStarted, Acked, Received):
        tenant = tenant_of(event.client)
        if tenant_of(event.topic) != tenant:
            yield f"{event} belongs to a topic of another tenant"
        if isinstance(event, Received) and tenant not in senders.get(event.content, {tenant}):
            yield f"{event} was sent in another tenant"
    for entry in history.log:
        tenant = tenant_of(entry.topic)
        if tenant not in senders.get(entry.content, {tenant}):
            yield f"{entry} was sent in another tenant"
