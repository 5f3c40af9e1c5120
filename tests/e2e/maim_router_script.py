"""Drives the unmodified Router of any version of maim_message; prints JSON lines.

talk URL TOKEN PLATFORM   print `connected` whenever that changes, say `hello` and a custom message whenever
                          it is true, and print all pushed frames
refused URL TOKEN PLATFORM   print whether a MessageClient considers itself connected after its first attempt
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import Any

from maim_message import (
    BaseMessageInfo,
    GroupInfo,
    MessageBase,
    MessageClient,
    RouteConfig,
    Router,
    Seg,
    TargetConfig,
    UserInfo,
)

#: Early versions print what they do.
_out, sys.stdout = sys.stdout, sys.stderr


def show(line: object) -> None:
    print(json.dumps(line), file=_out, flush=True)


async def heard(message: dict[str, Any]) -> None:
    parsed = MessageBase.from_dict(message)
    show({"heard": message, "text": parsed.message_segment.data, "platform": parsed.message_info.platform})


async def poked(message: dict[str, Any]) -> None:
    show({"poked": message["content"]})


async def failed(message: dict[str, Any]) -> None:
    show({"failed": message["content"]})


def message(platform: str, message_id: str, text: str) -> MessageBase:
    info = BaseMessageInfo(
        platform=platform,
        message_id=message_id,
        time=int(time.time()),
        group_info=GroupInfo(platform=platform, group_id="7"),
        user_info=UserInfo(platform=platform, user_id="42"),
    )
    return MessageBase(message_info=info, message_segment=Seg("text", text))


def is_connected(router: Router, platform: str) -> bool:
    client: Any = router.clients.get(platform)
    if client is None:
        return False
    # Before 0.3 there was no method for that.
    return bool(client.remote_ws_connected if hasattr(client, "remote_ws") else client.is_connected())


async def talk(url: str, token: str, platform: str) -> None:
    """Say hello at each connection until the process is killed."""
    router = Router(RouteConfig({platform: TargetConfig(url, token or None)}))
    router.register_class_handler(heard)
    if hasattr(router, "register_custom_message_handler"):
        router.register_custom_message_handler("poke", poked)
        router.register_custom_message_handler("trunkline_error", failed)
    running = asyncio.create_task(router.run())
    connections, was_connected = 0, False
    while not running.done():
        if is_connected(router, platform) != was_connected:
            was_connected = not was_connected
            show({"connected": was_connected})
            if was_connected:
                connections += 1
                await router.send_message(message(platform, f"m{connections}", f"hello {connections}"))
                if connections == 1 and hasattr(router, "send_custom_message"):
                    await router.send_custom_message(platform, "poke", {"target": "42"})
        await asyncio.sleep(0.02)


async def refused(url: str, token: str, platform: str) -> None:
    """Try once, and print whether the client is connected."""
    client = MessageClient()
    await client.connect(url, platform, token or None)
    connection = client.connection
    show({"connect": await connection.connect(), "connected": client.is_connected()})


if __name__ == "__main__":
    logging.disable()
    asyncio.run({"talk": talk, "refused": refused}[sys.argv[1]](*sys.argv[2:]))
