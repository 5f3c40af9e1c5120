"""Prometheus metrics of one edge, read from the core's counters at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from trunkline_runtime.descriptors import watch
from trunkline_runtime.router_addresses import RouterAddresses

from trunkline_edge.core.edge import EdgeCore


class EdgeCollector(Collector):
    """Collects the metrics of one edge. A count costs the hot path one addition."""

    def __init__(self, core: EdgeCore, routers: RouterAddresses) -> None:
        self._core = core
        self._routers = routers

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        core, counts, backpressure = self._core, self._core.counts, self._core.backpressure
        gauges = {
            "connections": ("Connections now", len(core.connections)),
            "connections_opening": (
                "Connections that the router has not answered yet",
                core.sessions.opening,
            ),
            "link_up": ("1 while the edge is linked to a router", int(core.uplink.is_up)),
            "uplink_waiting_bytes": ("Bytes queued for the router", core.uplink.waiting_bytes),
            "descriptor_limit": ("File descriptors that the process may have", watch.limit),
            "outbox_bytes": ("Bytes buffered for slow clients", backpressure.total_bytes),
            "congested": (
                "1 while the clients' backlog withholds credit from the router",
                int(backpressure.is_congested),
            ),
        }
        counters = {
            "connections_opened": ("Connections accepted", counts.opened),
            "descriptor_failures": (
                "Operations that failed for want of a file descriptor",
                watch.failures,
            ),
            "protocol_errors": (
                "Connections that sent what is no TLS, HTTP or WebSocket",
                counts.protocol_errors,
            ),
            "frames_received": ("Frames from clients", counts.frames_in),
            "frames_refused": (
                "Frames from clients answered with an error by the edge",
                counts.frames_refused,
            ),
            "deliveries": ("Frames handed to sockets, one for each listener", counts.deliveries),
            "frames_dropped": (
                "Frames for clients that were being closed or gone, one for each listener",
                counts.dropped,
            ),
            "deltas_received": ("Deltas from the router", counts.deltas_in),
            "delta_frames": (
                "Frames with deltas handed to sockets, one for each listener",
                counts.delta_frames,
            ),
            "deltas_delivered": (
                "Deltas in those frames; by delta_frames it is how many are joined in one",
                counts.deltas_delivered,
            ),
            "link_batches_received": ("Batches from the router", counts.batches_in),
            "slow_consumers": ("Connections closed because they read too slowly", counts.slow_consumers),
            "connections_displaced": (
                "TCP connections closed for a new one: idle, closing, or silent so far",
                counts.connections_displaced,
            ),
            "connections_rejected": (
                "TCP connections and HTTP requests beyond the bounds of connections",
                counts.connections_rejected,
            ),
            "links": ("Times that the edge has linked to a router", counts.links),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"trunkline_edge_{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"trunkline_edge_{name}", text, value)
        linked = GaugeMetricFamily(
            "trunkline_edge_link_router", "1 for the router that the edge is linked to", labels=["router"]
        )
        for router in self._routers:
            linked.add_metric([router], int(core.uplink.is_up and router == self._routers.in_use))
        yield linked
        refused = CounterMetricFamily(
            "trunkline_edge_refused",
            "Frames answered with an error, and connects that were refused, by the catalogue's code",
            labels=["code"],
        )
        for code, value in counts.refused_by.items():
            refused.add_metric([code], value)
        yield refused
        closed = CounterMetricFamily(
            "trunkline_edge_connections_closed", "Accepted connections that ended, by cause", labels=["cause"]
        )
        for cause, value in counts.closed_by.items():
            closed.add_metric([cause], value)
        yield closed
