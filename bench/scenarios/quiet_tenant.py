"""Tenant with moderate traffic, on which the effects of others are measured."""

from bench.loadgen.chat_frames import JSON
from bench.processes import Child, Testbed

QUIET = "quiet"
CLIENTS, SEND_INTERVAL_S = 50, 0.5
"""Clients of the tenant, two in each conversation, and the interval between messages of each."""
RATE_PER_S = CLIENTS / SEND_INTERVAL_S


def connect_clients(bed: Testbed, edge_port: int) -> Child:
    """Start the tenant's load generator and connect its clients."""
    neighbours = bed.generator("neighbours", edge_port)
    endpoint = {
        "target": f"/v1/connect?tenant={QUIET}&agent=a&platform=web&conversation=group:{{pair}}&user=u{{n}}",
        "subprotocol": JSON,
        "waits_for_frame": True,
    }
    opened = neighbours.call("open", "opened", 60, endpoint=endpoint, count=CLIENTS)
    if opened["opened"] != CLIENTS:
        raise RuntimeError(f"{opened}")
    return neighbours
