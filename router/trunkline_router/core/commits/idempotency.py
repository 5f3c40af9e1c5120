"""Idempotency keys, and digests of the contents that they stand for."""

from __future__ import annotations

from hashlib import blake2b

from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.values.topics import TopicKey


def idempotency_key(tenant: Tenant, kind: str, topic: TopicKey, user: str, key: str) -> bytes:
    """Return the 16 bytes under which the log stores a key: a hash of its scope and the key.

    The tenant's creation time is part of the scope, so a tenant created later under the same name does not
    get the answers of the deleted one.
    """
    name, agent, platform, target, target_id = topic
    life = f"{name}\0{tenant.created_ms}"
    scope = f"{kind}\0{life}\0{agent}\0{platform}\0{target}\0{target_id}\0{user}\0{key}"
    return blake2b(scope.encode(), digest_size=16).digest()


def content_digest(serialized: bytes) -> bytes:
    """Return 8 bytes that tell contents apart when a key is repeated."""
    return blake2b(serialized, digest_size=8).digest()
