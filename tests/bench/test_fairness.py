"""Fairness benchmark: declared tenants, measured delays and counts, goals and report."""

import json
import socket
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from trunkline.v1.tenant_limits import default_limits
from trunkline.v1.tenant_pb2 import OPENNESS_LOOPBACK, ClientAuth, VerificationKey
from trunkline_edge.auth.key_set import inline_keys
from trunkline_edge.auth.tokens import verify
from trunkline_router.tenants_file import load

from bench.fairness_chart import fairness_chart
from bench.goals import rows
from bench.loadgen.chat_frames import JSON
from bench.loadgen.chat_text import chat_text
from bench.loadgen.connector import OpenedConnections
from bench.loadgen.flooders import FloodRun
from bench.loadgen.neighbours import Neighbours
from bench.loadgen.token_signer import TokenSigner, new_key
from bench.loadgen.websocket_frames import TEXT
from bench.processes import tenant_toml
from bench.report import markdown


def test_a_router_reads_the_tenants_file_of_the_benchmark(tmp_path: Path) -> None:
    """By default every limit is far above the load."""
    file = tmp_path / "tenants.toml"
    file.write_text(tenant_toml("demo") + tenant_toml("loud", limits="messages_per_s = 500"))
    tenants = load(file)
    assert tenants["demo"].open_to == OPENNESS_LOOPBACK
    assert tenants["loud"].limits.messages_per_s == 500
    for field, value in tenants["demo"].limits.ListFields():
        assert value >= 100 * getattr(default_limits(), field.name)


@pytest.mark.parametrize("algorithm", ["HS256", "ES256", "EdDSA"])
def test_an_edge_accepts_the_signed_tokens(algorithm: str) -> None:
    """Signed with the private key, verified with the public one."""
    private, public = new_key(algorithm)
    [table] = tomllib.loads(tenant_toml("t", more=f"[[tenants.t.keys]]\njwk = '{public}'"))["tenants"]["t"][
        "keys"
    ]
    auth = ClientAuth(keys=[VerificationKey(kid=algorithm, algorithm=algorithm, jwk=table["jwk"])])
    token = TokenSigner("t", algorithm, private).token("u7")
    assert verify(token, "t", auth, inline_keys(auth), time.time()).user == "u7"


def server_frame(payload: bytes) -> bytes:
    return bytes([0x80 | TEXT, 126]) + len(payload).to_bytes(2, "big") + payload


def message_payload(number: int, due_ns: int) -> bytes:
    return json.dumps({"type": "message", "parts": [{"text": chat_text(number, due_ns)}]}).encode()


class FakeEdge:
    """Two clients' sockets, and the frames that each receives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.servers = [server for server, _ in pairs]
        clients = iter([client for _, client in pairs])
        monkeypatch.setattr(
            "bench.loadgen.neighbours.open_all", lambda *_, **__: OpenedConnections([next(clients)])
        )
        self.neighbours = Neighbours(0)
        self.neighbours.open({"target": "/{pair}", "subprotocol": JSON}, 2)

    def send(self, client: int, *payloads: bytes) -> None:
        self.servers[client].sendall(b"".join(map(server_frame, payloads)))

    def close(self) -> None:
        for client in self.neighbours._clients:
            client.sock.close()
        for server in self.servers:
            server.close()


def ack(number: int) -> bytes:
    return b'{"type":"ack","id":"%d","message_id":"7"}' % number


def test_neighbours_measure_from_when_a_message_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acks are matched by id, messages by text; here both arrive before they are read."""
    edge = FakeEdge(monkeypatch)
    due_ns = time.monotonic_ns() - 50_000_000
    edge.send(0, ack(0), message_payload(1, due_ns))
    edge.send(1, ack(1), message_payload(0, due_ns))
    talked = edge.neighbours.talk(rate=1e9, seconds=2e-9)
    edge.close()
    assert talked["wrong"] == {"unacked": 0, "unheard": 0, "faults": 0}
    assert talked["acked"]["samples"] == talked["heard"]["samples"] == 2
    assert talked["heard"]["p50_ms"] >= 50 > talked["acked"]["p50_ms"]


def test_neighbours_count_lost_rejected_and_misdelivered_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is an error."""
    monkeypatch.setattr("bench.loadgen.neighbours.ANSWERS_WITHIN_S", 0.1)
    edge = FakeEdge(monkeypatch)
    edge.send(0, b'{"type":"error","code":"RATE_LIMITED"}', message_payload(0, time.monotonic_ns()))
    talked = edge.neighbours.talk(rate=1e9, seconds=2e-9)
    edge.close()
    assert talked["wrong"] == {"unacked": 2, "unheard": 1, "faults": 2}


def test_a_flood_is_counted_only_after_its_lead_time() -> None:
    """Messages accepted from the initially full bucket do not count."""
    ahead = FloodRun(rate=5000, seconds=100, lead_s=50)
    ahead.count("through", 500)
    assert ahead.result()["through_per_s"] == 0
    counted = FloodRun(rate=5000, seconds=100, lead_s=0)
    for what, times in (("offered", 1000), ("through", 500), ("RATE_LIMITED", 20), ("closed", 1)):
        counted.count(what, times)
    answer = counted.result()
    assert (answer["offered_per_s"], answer["through_per_s"], answer["limited_per_s"]) == (10, 5, 0.2)
    assert answer["otherwise"] == {"closed": 1}


def fairness(**changed: float) -> dict[str, object]:
    """Results that just meet all goals, except for those `changed`."""
    given = {"acked": 12.0, "heard": 12.0, "through": 550.0, "lost": 0} | changed

    def phase(acked: float, heard: float) -> dict[str, object]:
        return {
            "acked": {"p50_ms": 2.0, "p99_ms": acked},
            "heard": {"p50_ms": 2.0, "p99_ms": heard},
            "p99_ms_of_each": {"heard": [heard]},
            "wrong": {"unacked": given["lost"]} if given["lost"] else {},
            "cpu_percent": {"router": 10.0},
            "loud": {"offered_per_s": 5000, "through_per_s": given["through"], "limited_per_s": 300},
        }

    phases = {
        "alone": phase(10.0, 10.0),
        "at_quota": phase(10.0, 10.0),
        "tenfold": phase(given["acked"], given["heard"]),
    }
    ways = dict.fromkeys(("websocket", "unary", "many"), phases)
    return {"quota_per_s": 500, "times": 10, "quiet_per_s": 100, **ways}


def test_fairness_results_on_the_goals_meet_them() -> None:
    """Goals: rise of the p99, messages accepted from the other tenant, errors."""
    assert [row.met for row in rows({"fairness": fairness()})] == [True] * 7


@pytest.mark.parametrize(
    ("changed", "value", "missed"),
    [("acked", 12.1, 3), ("heard", 12.1, 3), ("through", 551, 3), ("lost", 1, 1)],
)
def test_each_goal_of_fairness_can_be_missed(changed: str, value: float, missed: int) -> None:
    """For each method; the worse of ack and delivery counts."""
    found = rows({"fairness": fairness(**{changed: value})})
    assert sum(row.met is False for row in found) == missed


def test_the_report_contains_each_phase_of_each_method() -> None:
    """With the rates of the other tenant."""
    text = markdown({}, {"fairness": fairness()})
    assert text.count("| frames, ") == 3
    assert "| `BroadcastMany`, tenfold | 2.00 / 12.00 | 2.00 / 12.00 | 1.20 |" in text


def test_the_chart_contains_the_p99_of_each_phase() -> None:
    """The chart parses as XML and labels each bar."""
    texts = [each.text for each in ElementTree.fromstring(fairness_chart(fairness())).iter() if each.text]
    assert (texts.count("10.0"), texts.count("12.0")) == (6, 3)
    assert "it sends 10 times its quota" in texts
