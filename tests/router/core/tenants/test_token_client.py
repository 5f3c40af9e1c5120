"""A client that calls over HTTP may do in exactly the conversations to which it could connect."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1.access_pb2 import TokenHolder
from trunkline.v1.address_pb2 import Address
from trunkline.v1.catalogue import Refused
from trunkline.v1.edge_service_pb2 import ConnectionOpened
from trunkline.v1.tenant_pb2 import ClientAuth
from trunkline_edge.auth.claims import principal_of
from trunkline_edge.auth.principal import RIGHTS, Principal
from trunkline_router.core.tenants.token_client import TokenClient
from trunkline_router.core.values.permissions import Permissions
from trunkline_router.core.values.topics import topic_of

NAMES = st.sampled_from(["ann", "bob", "tea"])


def principal(claims: dict[str, Any], **payload: Any) -> Principal:
    members = {"tenant": "t", "exp": 1000, "trunkline": claims} | payload
    return principal_of(json.dumps(members).encode(), "t", ClientAuth(), "key", now_s=500)


def client_of(holder: Principal) -> TokenClient:
    """The client as the router reads it from the metadata of a call."""
    return TokenClient.of(TokenHolder.FromString(holder.holder("t").SerializeToString()))


principals = st.builds(
    principal,
    st.fixed_dictionaries(
        {},
        optional={
            "agents": st.lists(NAMES),
            "platforms": st.lists(NAMES),
            "conversations": st.lists(st.builds("{}:{}".format, st.sampled_from(["person", "group"]), NAMES)),
            "rights": st.lists(st.sampled_from(sorted(RIGHTS))),
        },
    ),
    sub=NAMES,
    jti=NAMES,
    iat=st.integers(0, 500),
)
conversations = st.builds(
    lambda tenant, agent, platform, kind, ident: Address(
        tenant=tenant, agent=agent, platform=platform, conversation={"kind": kind, "id": ident}
    ),
    st.sampled_from(["t", "other"]),
    NAMES,
    NAMES,
    st.sampled_from([1, 2]),
    NAMES,
)


def is_refused(check: Any, *arguments: Any) -> bool:
    try:
        check(*arguments)
    except Refused as refused:
        if refused.entry.code != "FORBIDDEN":
            raise
        return True
    return False


@given(holder=principals, address=conversations)
def test_a_client_calls_where_it_could_connect(holder: Principal, address: Address) -> None:
    client = client_of(holder)
    may_connect = not is_refused(holder.authorize, ConnectionOpened(address=address))
    is_allowed = may_connect and address.tenant == "t"
    assert client.allows(topic_of(address)) == is_allowed
    assert is_refused(client.check_conversation, address) != is_allowed


@given(holder=principals)
def test_the_router_reads_what_the_edge_has_verified(holder: Principal) -> None:
    client = client_of(holder)
    assert (client.tenant, client.user, client.addresses) == ("t", holder.user, holder.addresses)
    assert client.permissions == Permissions.from_grants(holder.grants())


def test_no_broader_address_is_allowed() -> None:
    client = client_of(principal({}, sub="ann"))
    for address in (
        Address(tenant="t"),
        Address(tenant="t", agent="a"),
        Address(tenant="t", agent="a", platform="p"),
        Address(tenant="t", user="ann"),
    ):
        assert not client.allows(topic_of(address))
