"""Backends that send faster than their tenant may."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any

import grpc.aio
import pytest
from trunkline.v1 import catalogue
from trunkline.v1.broadcast_service_pb2 import BroadcastManyRequest

from router.rpc import status
from router.rpc.broadcast import MOST_AT_ONCE, pieces


class Context:
    """A call that is only ever ended."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, text: str, metadata: Any) -> None:
        self.code = code
        raise grpc.aio.AbortError


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return waited


async def ended_with(entry: catalogue.Entry, **values: str) -> grpc.StatusCode | None:
    @status.answers
    async def refuses(self: None, request: None, context: Context) -> None:
        raise entry.refused(**values)

    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await refuses(None, None, context)
    return context.code


async def test_a_call_that_comes_too_fast_is_answered_later_and_each_at_another_time(
    waits: list[float],
) -> None:
    for _ in range(20):
        code = await ended_with(catalogue.RATE_LIMITED, limit="1 messages a second", whose="tenant t")
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    least, most = status.RESTS_S
    assert all(least <= each <= most for each in waits)
    assert len(set(waits)) == 20


async def test_other_refusals_do_not_wait(waits: list[float]) -> None:
    assert await ended_with(catalogue.UNKNOWN_TENANT, tenant="t") is grpc.StatusCode.NOT_FOUND
    assert not waits


def test_a_large_batch_is_taken_in_pieces_in_order() -> None:
    batch = BroadcastManyRequest()
    for number in range(2 * MOST_AT_ONCE + 1):
        batch.requests.add(number=number)
    taken = [[item.number for item in piece.requests] for piece in pieces(batch)]
    assert [len(piece) for piece in taken] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert list(chain.from_iterable(taken)) == list(range(2 * MOST_AT_ONCE + 1))


def test_a_small_batch_is_one_piece() -> None:
    batch = BroadcastManyRequest()
    batch.requests.add(number=1)
    [piece] = pieces(batch)
    assert piece is batch
