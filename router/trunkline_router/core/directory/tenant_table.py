"""The directory's tenants, kept as the log has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from trunkline.v1 import catalogue
from trunkline.v1.tenant_pb2 import TenantLimits

from trunkline_router.core.directory.client_outbox import ClientOutbox
from trunkline_router.core.directory.connections import ConnectedClient, Link
from trunkline_router.core.directory.directory import Directory
from trunkline_router.core.tenants.tenant import Tenant
from trunkline_router.core.tenants.unique_settings import UniqueSettings
from trunkline_router.core.values.stored_records import Registered, StoredRevocation, StoredTenant


class TenantTable:
    """Keeps the directory's tenants, and the policies of edges, as the log has them.

    Every change passed to it is already on disk. `defaults` replace limits that a tenant does not set.
    """

    def __init__(
        self, directory: Directory, client_outbox: ClientOutbox, peers: set[Link], defaults: TenantLimits
    ) -> None:
        self._directory = directory
        self._client_outbox = client_outbox
        self._peers = peers
        self._defaults = defaults
        self.unique_settings = UniqueSettings()
        #: Called with the name of a tenant whose settings may have changed.
        self.on_changed: Callable[[str], None] = lambda tenant: None

    def load(self, registered: Registered) -> None:
        """Add the tenants in the log; called before the first peer is admitted."""
        for stored in registered.tenants:
            tenant = self._directory.tenants[stored.tenant] = Tenant(stored, self._defaults)
            self.unique_settings.put(tenant.name, tenant.settings)
        for revocation in registered.revocations:
            if found := self._directory.tenants.get(revocation.tenant):
                found.revocations.add(revocation)

    def send_policies(self, link: Link) -> None:
        """Send all policies over a new link, before anything else."""
        for tenant in self._directory.tenants.values():
            self._send_policy(link, tenant)
        link.outbox.add().policies_told.SetInParent()
        self._peers.add(link)

    def put(self, stored: StoredTenant) -> Tenant:
        """Add or update a tenant. Connections of one that is no longer active are closed."""
        tenant = self._directory.tenants.get(stored.tenant)
        if tenant is None:
            tenant = self._directory.tenants[stored.tenant] = Tenant(stored, self._defaults)
        else:
            tenant.update(stored, self._defaults)
        self.unique_settings.put(tenant.name, tenant.settings)
        self.on_changed(tenant.name)
        for link in self._links():
            self._send_policy(link, tenant)
        if not tenant.is_active:
            self._close_all(tenant)
        return tenant

    def agents_attached(self, tenant: Tenant, agents: Iterable[str]) -> None:
        """A worker serves these agents; edges are notified of new ones."""
        if tenant.add_agents(agents):
            for link in self._links():
                self._send_policy(link, tenant)

    def remove(self, name: str) -> None:
        """Remove a deleted tenant, which is no longer active."""
        self._directory.tenants.pop(name, None)
        self.unique_settings.remove(name)
        for link in self._links():
            link.outbox.add(len(name)).gone.tenant = name
            self._peers.add(link)

    def revoke(self, revocation: StoredRevocation) -> int:
        """Add a revocation and close the connections that it affects. Returns their number."""
        tenant = self._directory.tenants[revocation.tenant]
        revokes = tenant.revocations.revokes
        # Connections with a token revoked earlier are closing already.
        valid = [c for c in self._connections(tenant.name) if not revokes(c.user, c.permissions)]
        tenant.revocations.add(revocation)
        revoked = [connection for connection in valid if revokes(connection.user, connection.permissions)]
        for connection in revoked:
            self._client_outbox.close(connection, catalogue.TOKEN_REVOKED.refused())
        return len(revoked)

    def _close_all(self, tenant: Tenant) -> None:
        reason = tenant.inactive_error()
        for connection in self._connections(tenant.name):
            self._client_outbox.close(connection, reason)

    def _connections(self, name: str) -> Iterator[ConnectedClient]:
        """Iterate over a tenant's connections, including those not yet accepted."""
        for link in self._directory.links.values():
            for connection in link.connections.values():
                if connection.home[0] == name:
                    yield connection

    def _links(self) -> list[Link]:
        return [link for link in self._directory.links.values() if not link.is_lost]

    def _send_policy(self, link: Link, tenant: Tenant) -> None:
        policy = tenant.policy()
        link.outbox.add(policy.ByteSize()).policy.CopyFrom(policy)
        self._peers.add(link)
