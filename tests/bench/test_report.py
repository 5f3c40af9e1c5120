"""Aggregation of repeats, and the rows, caveats and chart made from them."""

from xml.etree import ElementTree

import pytest

from bench.aggregate import medians, totals
from bench.caveats import caveats
from bench.chart import chart
from bench.goals import Row, rows


def point(rate: int | None, delivered: float) -> dict[str, object]:
    return {
        "rate": rate,
        "delivered_per_s": delivered,
        "latency": {"p50_ms": 1.5},
        "cpu_percent": {"listeners": 90.0, "others": 3.0},
        "wrong": {},
    }


def fanout(bridge: float) -> dict[str, object]:
    names = ("bridge_json", "bridge_proto", "fastapi", "websockets")
    delivered = dict.fromkeys(names, bridge) | {"fastapi": 100_000.0, "websockets": 150_000.0}
    return {"subscribers": 1000} | {
        name: {"points": [point(100, 90_000.0), point(1000, delivered[name])], "tracebacks": {}}
        for name in names
    }


def test_medians_include_nested_figures() -> None:
    """Each figure has its own median; figures missing from a repeat are left out."""
    repeats = [{"a": 1, "b": {"c": 10}, "d": 1}, {"a": 9, "b": {"c": 30}}, {"a": 2, "b": {"c": 20}}]
    assert medians(repeats) == {"a": 2, "b": {"c": 20}}


def test_totals_keep_nonzero_sums() -> None:
    """Error counts are summed so that one bad repeat is visible."""
    assert totals([{"lost": 0, "late": 1}, {"lost": 0, "late": 2}]) == {"late": 3}


@pytest.mark.parametrize(("bridge", "met"), [(2_000_000.0, True), (1_999_999.0, False)])
def test_fanout_goal_is_a_ratio_of_the_same_run(bridge: float, met: bool) -> None:
    """Twenty times FastAPI's best meets the goal, less misses it."""
    first = rows({"fanout": fanout(bridge)})[0]
    assert first.met is met
    assert first.times == pytest.approx(bridge / 100_000)


def streams(**changed: float) -> dict[str, object]:
    """Streaming results that just meet all goals, except for those `changed`."""
    given = {"one_ms": 100.0, "many_ms": 100.0, "used": 1.6, "resume_ms": 50.0, "lost": 0} | changed

    def phase(used: float) -> dict[str, object]:
        delays = {who: {"latency_from_due": {"p99_ms": given[f"{who}_ms"]}} for who in ("one", "many")}
        return {**delays, "bytes_per_byte": used, "wrong": {"wrong_texts": given["lost"]}}

    resume = {"latency": {"p99_ms": given["resume_ms"]}, "wrong": {}}
    bridge = {"rollup_0": phase(2.4), "rollup_40": phase(given["used"]), "resume": resume}
    fastapi = {"fastapi_delta": {"streams": phase(2.5)}, "fastapi_whole": {"streams": phase(80.0)}}
    return {"held_bytes": 102400, "bridge_json": bridge, "bridge_proto": bridge, **fastapi}


def test_streaming_results_on_the_goals_meet_them() -> None:
    """Bytes are compared with whole texts in each frame."""
    found = rows({"streams": streams()})
    assert [row.met for row in found] == [True] * 7
    assert found[2].times == pytest.approx(50)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [("one_ms", 2), ("many_ms", 2), ("used", 2), ("resume_ms", 2), ("lost", 1)],
)
def test_each_goal_of_streams_can_be_missed(changed: str, missed: int) -> None:
    """In both encodings; the worse of one listener and of many counts."""
    found = rows({"streams": streams(**{changed: 101.0})})
    assert sum(row.met is False for row in found) == missed


def test_less_is_better_inverts_the_ratio() -> None:
    """Half the latency is a ratio of 2."""
    assert Row("latency", "ms", 1.0, 2.0, less_is_better=True).times == 2.0
    assert Row("no baseline", "ms", 1.0).times is None


def test_caveats_name_saturated_load_generators() -> None:
    """A generator above 85 % of a core is reported with its phase."""
    found = caveats({"fanout": fanout(1e6)})
    assert "fanout, bridge_json, 100/s: the load generator (listeners) used 90 % of a core" in found


def test_caveats_summarise_disturbances() -> None:
    """One sentence reports the number of disturbed phases."""
    figures = fanout(1e6)
    for name in ("fastapi", "websockets"):
        for phase in figures[name]["points"]:  # type: ignore[index]
            phase["cpu_percent"] = {"others": 50.0}
    [caveat] = [each for each in caveats({"fanout": figures}) if "machine was busy" in each]
    assert "in 4 of" in caveat


def test_the_chart_is_well_formed_and_contains_every_series() -> None:
    """The chart parses as XML and names all systems."""
    results = {"fanout": fanout(3e6)}
    picture = chart(results["fanout"], rows(results))
    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.text]
    for label in ("Trunkline, JSON", "Trunkline, protobuf", "FastAPI manager", "bare websockets"):
        assert label in texts


def engine(**changed: float) -> dict[str, object]:
    given = {"per_s": 1000.0, "router_us": 10.0, "p50_ms": 1.0} | changed
    phase = {**given, "latency": {"p50_ms": given["p50_ms"]}}
    return dict.fromkeys(("many", "many_with_keys", "unary", "clients_1"), phase)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [({}, 0), ({"per_s": 699.0}, 3), ({"router_us": 10.1}, 3), ({"p50_ms": 1.61}, 1)],
)
def test_postgres_is_compared_with_sqlite(changed: dict[str, float], missed: int) -> None:
    """Figures on the goals meet them."""
    on_the_goals = {"per_s": 700.0, "router_us": 10.0, "p50_ms": 1.6}
    found = rows({"postgres": {"sqlite": engine(), "postgres": engine(**{**on_the_goals, **changed})}})
    assert len(found) == 7
    assert sum(row.met is False for row in found) == missed
