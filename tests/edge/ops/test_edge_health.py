"""Figures of the health page."""

from __future__ import annotations

import json

from prometheus_client.core import Metric
from trunkline_edge.core.counters import CLIENT_LEFT, CLIENT_LOST
from trunkline_edge.core.edge import EdgeCore
from trunkline_edge.core.limits import EdgeLimits
from trunkline_edge.ops.health import connection_stats
from trunkline_edge.ops.metrics import EdgeCollector
from trunkline_runtime.router_addresses import RouterAddresses


def value(metrics: list[Metric], name: str, **labels: str) -> float:
    """Return one sample, by its name without the common prefix."""
    return next(
        sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name == f"trunkline_edge_{name}" and sample.labels == labels
    )


def test_an_edge_without_clients_has_failed_nobody() -> None:
    found = connection_stats(EdgeCore(EdgeLimits()))
    assert (found["success_rate"], found["disconnect_rate"], found["closed_by"]) == (1.0, 0.0, {})
    assert json.loads(json.dumps(found)) == found


def test_shares_are_of_all_frames_and_of_all_connections_and_prometheus_has_the_same() -> None:
    core = EdgeCore(EdgeLimits())
    counts = core.counts
    counts.opened, counts.deliveries, counts.dropped = 8, 99, 1
    for cause in (CLIENT_LEFT, CLIENT_LOST, CLIENT_LOST, "HEARTBEAT_LOST", "RESTARTING", "CLOSED_BY_BACKEND"):
        counts.count_closed(cause)
    found = connection_stats(core)
    assert (found["success_rate"], found["disconnect_rate"]) == (0.99, 0.375)
    assert (found["connections_opened"], found["connections_closed"]) == (8, 6)
    metrics = list(EdgeCollector(core, RouterAddresses("a:1,b:1")).collect())
    assert sum(found["closed_by"].values()) == 6
    for cause, number in found["closed_by"].items():
        assert value(metrics, "connections_closed_total", cause=cause) == number
    assert value(metrics, "deliveries_total") == found["deliveries"]
    assert value(metrics, "frames_dropped_total") == found["dropped"]


def test_metrics_name_the_router_that_the_edge_is_linked_to() -> None:
    core, routers = EdgeCore(EdgeLimits()), RouterAddresses("a:1,b:1")
    collector = EdgeCollector(core, routers)
    assert [value(list(collector.collect()), "link_router", router=each) for each in routers] == [0, 0]
    core.uplink.restart(is_up=True)
    routers.in_use = "b:1"
    assert [value(list(collector.collect()), "link_router", router=each) for each in routers] == [0, 1]
