"""The edge's runtime: every effect of the core is carried out."""

from __future__ import annotations

from typing import get_args

from trunkline_edge.auth.jwks import FetchFailed
from trunkline_edge.core.effects import Effect
from trunkline_edge.runtime import EdgeRuntime
from trunkline_edge.settings import EdgeSettings


async def no_fetch(url: str) -> bytes:
    """Fail every fetch."""
    raise FetchFailed(url)


def test_every_effect_has_an_applier() -> None:
    runtime = EdgeRuntime(EdgeSettings(), no_fetch)
    assert set(runtime._appliers) == set(get_args(Effect))
