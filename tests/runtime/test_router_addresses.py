"""Lists of routers that share one log."""

from __future__ import annotations

import pytest
from trunkline_runtime.router_addresses import MAX_ROUTERS, RouterAddresses


def test_one_address_is_a_list_of_one() -> None:
    routers = RouterAddresses("router:50051")
    assert (list(routers), routers.in_use, len(routers)) == (["router:50051"], "router:50051", 1)
    assert routers.after("router:50051") == "router:50051"
    assert routers.in_order() == ["router:50051"]


def test_addresses_follow_one_another_from_the_one_in_use() -> None:
    routers = RouterAddresses(" a:1, b:2 ,[::1]:3")
    assert str(routers) == "a:1,b:2,[::1]:3"
    assert [routers.after(each) for each in routers] == ["b:2", "[::1]:3", "a:1"]
    assert routers.in_order() == ["a:1", "b:2", "[::1]:3"]
    routers.in_use = "[::1]:3"
    assert routers.in_order() == ["[::1]:3", "a:1", "b:2"]


@pytest.mark.parametrize(
    "text",
    [
        "a:50051,a:50052",
        "[::1]:1,[::2]:1",
        "127.0.0.1:1,[::1]:1",
        "dns:///a:1,unix:/run/router",
        ",".join(f"r{n}:1" for n in range(MAX_ROUTERS)),
    ],
)
def test_hosts_ports_and_families_may_differ(text: str) -> None:
    assert str(RouterAddresses(text)) == text


def test_a_grpc_target_of_several_addresses_is_a_list_of_them() -> None:
    assert list(RouterAddresses("ipv4:10.0.0.1:1,10.0.0.2:1")) == ["ipv4:10.0.0.1:1", "10.0.0.2:1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be host:port"),
        ("a:1,", "empty address"),
        (",a:1", "empty address"),
        ("a:1,,b:1", "empty address"),
        (" , ", "empty address"),
        ("a:1,a:1", "names a router twice: a:1 and a:1"),
        ("Router:1,b:1,router:1", "names a router twice: Router:1 and router:1"),
        ("[::1]:1,[0:0::1]:01", "names a router twice"),
        ("a:1,b", "'b' must be host:port"),
        ("a:1,b:0", "'b:0' must be the host:port"),
        ("a:1,:2", "':2' must be the host:port"),
        ("a:1,b:65536", "'b:65536' the port must be a number"),
        ("a:1,::1:2", "brackets"),
        ("a:1;b:2", "commas between"),
        ("a:1 b:2", "commas between"),
        (",".join(f"r{n}:1" for n in range(MAX_ROUTERS + 1)), "at most 16 routers; it names 17"),
    ],
)
def test_a_wrong_list_is_refused_with_the_entry_and_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        RouterAddresses(text)
    assert "\n" not in str(raised.value)
