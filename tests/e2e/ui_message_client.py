"""Client of the AI SDK dialect on plain HTTP, whose stream is read chunk by chunk."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx

from tests.support.patience import patient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE = "[DONE]"


class UiStream:
    """The chunks of one response, in order."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.chunks: list[Any] = []
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        """Return the next chunk, or DONE. Raises StopAsyncIteration at the end of the body."""
        async for line in self._lines:
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                self.chunks.append(data if data == DONE else json.loads(data))
                return self.chunks[-1]
        raise StopAsyncIteration

    async def until(self, kind: str) -> Any:
        """Read up to the next chunk of a type."""
        while (chunk := await self.next()) == DONE or chunk["type"] != kind:
            pass
        return chunk

    async def rest(self) -> list[Any]:
        """Read to the end of the body; return all chunks, with deltas joined."""
        try:
            while True:
                await self.next()
        except StopAsyncIteration:
            return joined(self.chunks)

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(
            chunk["delta"] for chunk in self.chunks if chunk != DONE and chunk["type"] == "text-delta"
        )


def joined(chunks: list[Any]) -> list[Any]:
    """Chunks with adjacent text deltas as one."""
    result: list[Any] = []
    for chunk in chunks:
        last = result[-1] if result else None
        if (
            isinstance(chunk, dict)
            and isinstance(last, dict)
            and "delta" in chunk
            and last["type"] == chunk["type"]
        ):
            result[-1] = {**last, "delta": last["delta"] + chunk["delta"]}
        else:
            result.append(chunk)
    return result


class UiChat:
    """One chat of a user, by default an anonymous one, with an agent of tenant demo."""

    def __init__(
        self, edge: str, chat: str, *, agent: str = "echo", tenant: str = "demo", **headers: str
    ) -> None:
        self.chat = chat
        self.api = f"/ai/{tenant}/{agent}/chat"
        self.http = httpx.AsyncClient(
            base_url=f"http://{edge}", headers=headers, trust_env=False, timeout=patient(20)
        )

    def body(self, text: str, ident: str, **fields: Any) -> dict[str, Any]:
        """The body that the SDK sends for a message."""
        message = {"id": ident, "role": "user", "parts": [{"type": "text", "text": text}]}
        return {"id": self.chat, "messages": [message], "trigger": "submit-message", **fields}

    @asynccontextmanager
    async def send(self, text: str, ident: str, **fields: Any) -> AsyncIterator[UiStream]:
        """Send a message; yield the stream of its reply."""
        async with self.http.stream("POST", self.api, json=self.body(text, ident, **fields)) as response:
            assert response.status_code == 200, (await response.aread(), response.status_code)
            yield UiStream(response)

    @asynccontextmanager
    async def resume(self) -> AsyncIterator[UiStream]:
        """Resume; yield the stream, whose response may have status 204."""
        async with self.http.stream("GET", f"{self.api}/{self.chat}/stream") as response:
            yield UiStream(response)

    async def stop(self) -> Any:
        """Stop what is being written."""
        return (await self.http.post(f"{self.api}/{self.chat}/stop")).json()

    async def load(self) -> list[Any]:
        """The chat's messages."""
        messages: list[Any] = (await self.http.get(f"{self.api}/{self.chat}")).json()["messages"]
        return messages
