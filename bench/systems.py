"""Systems under test: Trunkline in both encodings, and the baselines."""

from dataclasses import dataclass, field
from typing import Any

from bench.loadgen.chat_frames import JSON, PROTO
from bench.processes import TENANT, Child, Testbed

GROUP = "bench"


@dataclass(frozen=True, slots=True)
class System:
    """System under test. `subprotocol` is None for a baseline."""

    name: str
    label: str
    subprotocol: str | None = None

    def room(self) -> dict[str, Any]:
        """Endpoint of the group that all subscribers join."""
        return self._endpoint("bench", f"group:{GROUP}", "/rooms/bench")

    def person(self) -> dict[str, Any]:
        """Endpoint of a separate conversation for each connection, without an agent."""
        return self._endpoint("bench", "person:{n}", "/rooms/{n}")

    def person_with_token(self, signing: dict[str, str]) -> dict[str, Any]:
        """Like `person`, with a token for each client; `signing` holds arguments of `TokenSigner`."""
        address = f"tenant={TENANT}&agent=bench&platform=web&conversation=person:u{{n}}&token={{token}}"
        return {**self._bridge(address), "signing": signing}

    def echo(self) -> dict[str, Any]:
        """Endpoint of a separate conversation for each connection, with an echo agent."""
        return self._endpoint("echo", "person:{n}", "/echo")

    def _endpoint(self, agent: str, conversation: str, baseline: str) -> dict[str, Any]:
        if self.subprotocol is None:
            return {"target": baseline}
        address = f"tenant={TENANT}&agent={agent}&platform=web&conversation={conversation}&user=u{{n}}"
        return self._bridge(address)

    def _bridge(self, address: str) -> dict[str, Any]:
        return {"target": f"/v1/connect?{address}", "subprotocol": self.subprotocol, "waits_for_frame": True}


BRIDGE = System("bridge_json", "Trunkline, JSON", JSON)
BRIDGE_PROTO = System("bridge_proto", "Trunkline, protobuf", PROTO)
FASTAPI = System("fastapi", "FastAPI connection manager")
WEBSOCKETS = System("websockets", "bare websockets")
BRIDGES = (BRIDGE, BRIDGE_PROTO)
SYSTEMS = (*BRIDGES, FASTAPI, WEBSOCKETS)
STREAMING_BASELINES = (
    System("fastapi_delta", "FastAPI, deltas"),
    System("fastapi_whole", "FastAPI, whole text"),
)
"""Baselines for streamed replies; the second half of the name is the encoding."""


@dataclass(frozen=True, slots=True)
class Running:
    """Started system: its WebSocket port and, for Trunkline, its router port."""

    port: int
    router_port: int = 0
    servers: list[Child] = field(default_factory=list)


def start(stage: Testbed, system: System, tenants: str = "") -> Running:
    """Start the servers of a system; `tenants` as in `Testbed.router`."""
    if system.subprotocol:
        router_port, port = stage.bridge(tenants)
    elif system is FASTAPI:
        router_port = 0
        folder = str(stage.folder("fastapi"))
        _, port = stage.server("fastapi", "-m", "bench.baselines.fastapi_app", folder)
    else:
        router_port = 0
        _, port = stage.server("websockets", "-m", "bench.baselines.bare_websockets")
    return Running(port, router_port, list(stage.children))
