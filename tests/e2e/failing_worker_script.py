"""Worker on the Python client whose handler fails as the message's first word says.

Prints `attached`, then one line for each attempt. `flaky` fails before a reply at the first attempt,
`poison` at each; `streams` fails inside a reply; `explains` and `explains-inside` raise Failed, `rejects`
Reject; `holds` waits for ever, unless HOLDS is `no`. AGENTS lists its agents.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter

from trunkline_client import Failed, Message, Reject, Worker, text_of

calls: Counter[str] = Counter()
worker = Worker(
    os.environ["TRUNKLINE_ROUTER"],
    tenant="demo",
    agents=os.environ.get("AGENTS", "echo,group-bot").split(","),
    on_attached=lambda _: print("attached", flush=True),  # noqa: T201
)


@worker.handler
async def answer(message: Message) -> str:
    """Answer, or fail."""
    how = text_of(message).split()[0]
    calls[message.id] += 1
    print(json.dumps({"text": text_of(message), "call": calls[message.id]}), flush=True)  # noqa: T201
    match how:
        case "flaky" if calls[message.id] == 1:
            raise ValueError("secret of the model")
        case "poison":
            raise ValueError("secret of the model")
        case "streams":
            async with worker.reply(message) as out:
                await out.write("so far")
                raise ValueError("secret of the model")
        case "explains":
            raise Failed("No credit left")
        case "explains-inside":
            async with worker.reply(message) as out:
                await out.write("so far")
                raise Failed("No credit left")
        case "rejects":
            raise Reject("secret of the model")
        case "holds" if os.environ.get("HOLDS") != "no":
            await asyncio.Event().wait()
    return f"re: {text_of(message)}"


asyncio.run(worker.run())
