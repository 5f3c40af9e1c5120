"""Tenants as they are declared, changed and taken away while the router runs."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import TenantLimits

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.tenants.unique_settings import UniqueSettings
from trunkline_router.core.values.log_records import Registered, StoredRevocation, StoredTenant


class TenantTable:
    """Keeps the directory's tenants as the log has them, and the edges up to date.

    What is said here is on disk already. `defaults` are the limits of tenants for which none were set.
    """

    def __init__(
        self, directory: Directory, answers: ClientOutbox, mail: set[Link], defaults: TenantLimits
    ) -> None:
        self._directory = directory
        self._answers = answers
        self._mail = mail
        self._defaults = defaults
        self.claims = UniqueSettings()

    def load(self, registered: Registered) -> None:
        """What the log holds; before any peer is let in."""
        for stored in registered.tenants:
            tenant = self._directory.tenants[stored.tenant] = Tenant(stored, self._defaults)
            self.claims.set(tenant.name, tenant.settings)
        for revocation in registered.revocations:
            if found := self._directory.tenants.get(revocation.tenant):
                found.revocations.add(revocation)

    def begin(self, link: Link) -> None:
        """An edge has linked: the first that it is told are all policies."""
        for tenant in self._directory.tenants.values():
            self._tell(link, tenant)
        link.outbox.add().policies_told.SetInParent()
        self._mail.add(link)

    def declare(self, stored: StoredTenant) -> Tenant:
        """A tenant is new, or has changed."""
        tenant = self._directory.tenants.get(stored.tenant)
        if tenant is None:
            tenant = self._directory.tenants[stored.tenant] = Tenant(stored, self._defaults)
        else:
            tenant.declare(stored, self._defaults)
        self.claims.set(tenant.name, tenant.settings)
        for link in self._links():
            self._tell(link, tenant)
        if not tenant.is_active:
            self._close_all(tenant)
        return tenant

    def gone(self, name: str) -> None:
        """A tenant is no more; it took no part any longer."""
        self._directory.tenants.pop(name, None)
        self.claims.gone(name)
        for link in self._links():
            link.outbox.add(len(name)).gone.tenant = name
            self._mail.add(link)

    def revoke(self, revocation: StoredRevocation) -> int:
        """Tokens were taken back. Returns how many connections that ends."""
        tenant = self._directory.tenants[revocation.tenant]
        revokes = tenant.revocations.revokes
        # Not those that are on their way out already.
        good = [c for c in self._connections(tenant.name) if not revokes(c.user, c.allowed)]
        tenant.revocations.add(revocation)
        revoked = [connection for connection in good if revokes(connection.user, connection.allowed)]
        for connection in revoked:
            self._answers.close(connection, catalogue.TOKEN_REVOKED.refused())
        return len(revoked)

    def _close_all(self, tenant: Tenant) -> None:
        reason = tenant.inactive()
        for connection in self._connections(tenant.name):
            self._answers.close(connection, reason)

    def _connections(self, name: str) -> Iterator[ConnectedClient]:
        """Those on their way in among them."""
        for link in self._directory.links.values():
            for connection in link.connections.values():
                if connection.home[0] == name:
                    yield connection

    def _links(self) -> list[Link]:
        return [link for link in self._directory.links.values() if not link.lost]

    def _tell(self, link: Link, tenant: Tenant) -> None:
        policy = tenant.policy()
        link.outbox.add(policy.ByteSize()).policy.CopyFrom(policy)
        self._mail.add(link)
