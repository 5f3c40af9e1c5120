"""isolated: no operation of one tenant shows or reaches what is another's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.validators.history import Acked, History, Received, Sent, TopicStarted, tenant_of


def isolated(history: History) -> Iterator[str]:
    """Topics and words of one tenant that a client, or a log, of another holds."""
    speakers: dict[str, set[str]] = defaultdict(set)
    for said in history.of(Sent):
        speakers[said.content].add(tenant_of(said.client))
    for event in history.of(TopicStarted, Acked, Received):
        tenant = tenant_of(event.client)
        if tenant_of(event.topic) != tenant:
            yield f"{event} is of another tenant's topic"
        if isinstance(event, Received) and tenant not in speakers.get(event.content, {tenant}):
            yield f"{event} was said in another tenant"
    for entry in history.log:
        tenant = tenant_of(entry.topic)
        if tenant not in speakers.get(entry.content, {tenant}):
            yield f"{entry} was said in another tenant"
