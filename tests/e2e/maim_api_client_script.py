"""Drives the unmodified API-server client of maim_message 0.6.6 and later; prints JSON lines.

talk URL KEY PLATFORM      print `connected`, send a message and a custom one, then print all pushed frames
refused URL KEY PLATFORM   print the client's last error, and whether it considers itself connected
states URL KEY PLATFORM    print the states of connections once the first attempt failed (0.7)
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

from maim_message.client import WebSocketClient, create_client_config
from maim_message.message import APIMessageBase, BaseMessageInfo, MessageDim, Seg


def show(line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


async def heard(message: APIMessageBase, meta: dict[str, Any]) -> None:
    segment, dim = message.message_segment.to_dict(), message.message_dim.to_dict()
    show({"segment": segment, "dim": dim, "info": message.message_info.to_dict(), "meta": meta})


async def poked(payload: dict[str, Any]) -> None:
    show({"poke": payload})


def client_of(url: str, key: str, platform: str) -> WebSocketClient:
    config = create_client_config(url, key, platform=platform, on_message=heard, reconnect_delay=0.2)
    client = WebSocketClient(config)
    client.register_custom_handler("poke", poked)
    return client


def message(key: str, platform: str, text: str) -> APIMessageBase:
    info = BaseMessageInfo(platform=platform, message_id="m1", time=time.time())
    return APIMessageBase(info, Seg("text", text), MessageDim(key, platform))


async def talk(url: str, key: str, platform: str) -> None:
    """Send two messages and print pushed frames until the process is killed."""
    client = client_of(url, key, platform)
    await client.start()
    show({"connected": await client.connect()})
    said = await client.send_message(message(key, platform, "hello"))
    custom = await client.send_custom_message("poke", {"target": "42"})
    show({"said": said, "custom": custom})
    await asyncio.Event().wait()


async def refused(url: str, key: str, platform: str) -> None:
    """Print the client's error at once; `connect` returns False only after ten seconds."""
    client = client_of(url, key, platform)
    await client.start()
    connecting = asyncio.create_task(client.connect())
    while not client.get_last_error():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    show({"error": client.get_last_error(), "connected": client.is_connected()})
    connecting.cancel()


async def states(url: str, key: str, platform: str) -> None:
    """Print the state after the first attempt."""
    client = client_of(url, key, platform)
    await client.start()
    connecting = asyncio.create_task(client.connect())
    known = client.network_driver.connection_states
    # `connect_error` leaves this state; a client that has given up is `disconnected`.
    await asyncio.sleep(1)
    show({"states": list(known.values()), "connected": client.is_connected()})
    connecting.cancel()


if __name__ == "__main__":
    logging.disable()
    asyncio.run({"talk": talk, "refused": refused, "states": states}[sys.argv[1]](*sys.argv[2:]))
