"""Drives the unmodified clients of maim_message 0.6.6; each mode prints JSON lines.

connects URL COUNT AT_A_TIME   open COUNT connections; count those that can send, and receive the reply
stay URL TENANT PLATFORM       print `connected`, then all pushed frames; the client reconnects by itself
threaded URL                   the same with the threaded client, after one message with its reply
backend URL                    call the broadcast API, with connections at demo/qq
bot URL JOBS                   broadcast like MaiMBot; a job is [tenant, agent, platform, count]
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

import aiohttp
from maim_message.tenant_broadcast_api import TenantBroadcastAPI
from maim_message.tenant_client import ClientConfig, TenantMessageClient
from maim_message.tenant_client_threaded import ClientConfig as ThreadedConfig
from maim_message.tenant_client_threaded import TenantMessageClientThreaded

CHAT = {"type": "chat", "message_segment": {"type": "text", "data": "hello"}}
#: A working client receives the reply at once, a broken one never does.
HEARS_WITHIN_S = float(os.environ["HEARS_WITHIN_S"])


def say(line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


def client_of(url: str, tenant: str, platform: str, heard: Any) -> TenantMessageClient:
    config = ClientConfig(tenant, platform, url, max_retries=20, reconnect_interval=0.2)  # type: ignore[arg-type]
    client = TenantMessageClient(config)
    client.register_callback(heard, [], tenant_filter=tenant, platform_filter=platform)
    return client


async def one_connect(url: str, number: int, waits: bool) -> dict[str, float]:
    """Return 1 for each step that worked, and the duration of the confirmed send."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    client = client_of(url, "demo", f"p{number}", lambda push: answer.done() or answer.set_result(push))
    connected = await client.connect()
    began = time.monotonic()
    sent = await client.send_message(CHAT, wait_for_result=waits)
    took = time.monotonic() - began
    push = await asyncio.wait_for(answer, HEARS_WITHIN_S)
    await client.disconnect()
    return {
        "connected": connected,
        "resolved": sent.get("success", False),
        "heard": push["data"]["response"] == "re: hello",
        "took": took,
    }


async def connects(url: str, count: str, at_a_time: str) -> None:
    """Print the number of successes per step, and the slowest send."""
    slots = asyncio.Semaphore(int(at_a_time))

    async def limited_connect(number: int) -> dict[str, float]:
        async with slots:
            return await one_connect(url, number, waits=int(at_a_time) > 1)

    results = await asyncio.gather(*(limited_connect(number) for number in range(int(count))))
    total = {name: sum(result[name] for result in results) for name in ("connected", "resolved", "heard")}
    say(total | {"slowest": max(result["took"] for result in results)})


async def stay(url: str, tenant: str, platform: str) -> None:
    """Print pushed frames until the process is killed."""
    client = client_of(url, tenant, platform, say)
    say({"type": "connected", "ok": await client.connect()})
    await asyncio.Event().wait()


async def threaded(url: str) -> None:
    """Print pushed frames from the callback, which runs in the connection's thread."""
    config = ThreadedConfig("demo", "threaded", url, reconnect_interval=1)
    client = TenantMessageClientThreaded(config)
    client.register_callback(say, [])
    say({"type": "connected", "ok": await client.connect()})
    sent = await client.send_message(CHAT, wait_for_result=False)
    say({"type": "sent", "message_id": sent["message_id"]})
    await asyncio.Event().wait()


async def backend(url: str) -> None:
    """Print the results of all calls of the broadcast API."""
    async with TenantBroadcastAPI(url) as api:
        say(await api.broadcast_with_verification("demo", "qq", {"type": "notice", "text": "hello"}))
        say(await api.broadcast_to_tenant_platform("demo", "empty", {"type": "notice"}))
        say(await api.check_tenant_platform_status("demo", "qq"))
        say(await api.flush_retry_pool("demo"))


async def bot(url: str, jobs: str) -> None:
    """Run all jobs concurrently; print the number of messages and of connections reached."""
    reached: list[tuple[int, int]] = []

    async def job(tenant: str, agent: str, platform: str, count: int) -> None:
        place = f"tenants/{tenant}/agents/{agent}/platforms/{platform}"
        for number in range(count):
            push = {"type": "message", "data": {"response": f"{tenant}/{agent}/{platform} {number}"}}
            async with session.post(f"{url}/api/v1/{place}/broadcast", json=push) as response:
                answer = await response.json()
            reached.append((answer["success_count"], answer["failed_count"]))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(job(*each) for each in json.loads(jobs)))
    say({"sent": len(reached), "reached": sum(one for one, _ in reached)})


if __name__ == "__main__":
    logging.disable()
    modes = {"connects": connects, "stay": stay, "threaded": threaded, "backend": backend, "bot": bot}
    asyncio.run(modes[sys.argv[1]](*sys.argv[2:]))
