"""Completions benchmark: the chunks of a response, and goals."""

import pytest

from bench.goals import rows
from bench.loadgen.callers import call, events_in


def chunked(*payloads: bytes) -> bytes:
    """A response of these chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
    return b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n" + body + b"0\r\n\r\n"


def test_the_text_of_each_chunk_is_found_with_its_end() -> None:
    """Comments, chunks of other fields and the end have none; one chunk may have several events."""
    said = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
    response = chunked(
        b": accepted\n\n", said % b"a" + said % b"b", b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"
    )
    events = events_in(response)
    assert [text for _, text in events] == ["", "ab", "", "", ""]
    assert events[1][0] == response.index(b'"b"') + len(b'"b"}}]}\n\n\r\n')
    assert [end for end, _ in events] == sorted(end for end, _ in events)


def test_a_call_states_the_length_of_its_body() -> None:
    """Otherwise the server would wait for more."""
    head, _, body = call(80, "hi").partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


def completions(
    later_ms: float = 1, share: float = 1, lost: int = 0, failing_ms: float = 2
) -> dict[str, object]:
    """Results of one run."""

    def phase(p99_ms: float) -> dict[str, object]:
        return {"acked": {"p99_ms": p99_ms}, "heard": {"p99_ms": p99_ms}, "wrong": {"unacked": lost}}

    streamed = {"offered_per_s": 1000.0, "delivered_per_s": 1000 * share, "wrong": {"lost": lost}}
    turns = {"native": {"p50_ms": 2.0}, "call": {"p50_ms": 2.0 + later_ms}}
    return {
        "calls": {"streams": 50, "deltas_per_s": 20, "turns": turns, "streamed": streamed},
        "bot": {"phases": {"answering": phase(2), "failing": phase(failing_ms)}},
    }


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({}, []),
        ({"later_ms": 5.1}, [0]),
        ({"share": 0.94}, [1]),
        ({"lost": 1}, [2, 4]),
        ({"failing_ms": 2.5}, [3]),
    ],
)
def test_each_goal_can_be_missed(measured: dict[str, float], missed: list[int]) -> None:
    """First token, rate, losses, and delays and errors of the others."""
    found = rows({"completions": completions(**measured)})  # type: ignore[arg-type]
    assert [number for number, row in enumerate(found) if not row.met] == missed
