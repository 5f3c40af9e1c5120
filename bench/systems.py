"""What is measured: the bridge in both encodings, and the two that it is compared with."""

from dataclasses import dataclass, field
from typing import Any

from bench.loadgen.chat_frames import JSON, PROTO
from bench.processes import TENANT, Child, Testbed

GROUP = "bench"


@dataclass(frozen=True, slots=True)
class System:
    """One of them. `subprotocol` is None for what is no bridge."""

    name: str
    label: str
    subprotocol: str | None = None

    def room(self) -> dict[str, Any]:
        """The door to the group that everybody listens to."""
        return self._door("bench", f"group:{GROUP}", "/rooms/bench")

    def person(self) -> dict[str, Any]:
        """The door to a conversation of one's own that nobody answers in."""
        return self._door("bench", "person:{n}", "/rooms/{n}")

    def proven(self, signing: dict[str, str]) -> dict[str, Any]:
        """The same, for clients that show tokens signed so."""
        address = f"tenant={TENANT}&agent=bench&platform=web&conversation=person:u{{n}}&token={{token}}"
        return {**self._bridge(address), "signing": signing}

    def echo(self) -> dict[str, Any]:
        """The door to a conversation of one's own in which everything is echoed."""
        return self._door("echo", "person:{n}", "/echo")

    def _door(self, agent: str, conversation: str, baseline: str) -> dict[str, Any]:
        if self.subprotocol is None:
            return {"target": baseline}
        address = f"tenant={TENANT}&agent={agent}&platform=web&conversation={conversation}&user=u{{n}}"
        return self._bridge(address)

    def _bridge(self, address: str) -> dict[str, Any]:
        return {"target": f"/v1/connect?{address}", "subprotocol": self.subprotocol, "greeted": True}


BRIDGE = System("bridge_json", "Trunkline, JSON", JSON)
BRIDGE_PROTO = System("bridge_proto", "Trunkline, protobuf", PROTO)
FASTAPI = System("fastapi", "FastAPI connection manager")
WEBSOCKETS = System("websockets", "bare websockets")
BRIDGES = (BRIDGE, BRIDGE_PROTO)
SYSTEMS = (*BRIDGES, FASTAPI, WEBSOCKETS)
STREAMING_BASELINES = (
    System("fastapi_delta", "FastAPI, what is new"),
    System("fastapi_whole", "FastAPI, the text so far"),
)
"""How streamed replies are sent without a bridge; the encoding is the name's second half."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started system: the port of its WebSockets and, of a bridge, that of its router."""

    port: int
    router_port: int = 0
    servers: list[Child] = field(default_factory=list)


def start(stage: Testbed, system: System, tenants: str = "") -> Running:
    """Starts a system's servers; `tenants` as in `Stage.router`."""
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
