"""A client that says a few things and shows what the agent answers: python examples/chat_client.py"""

import asyncio
import os

from trunkline_client import Client, TrunklineError, text_of

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:8080")
LINES = ["Hello", "Is anybody there?", "Good bye"]


async def main() -> None:
    client = Client(
        URL, tenant="demo", agent="echo", platform="web", conversation="person:alice", user="alice"
    )
    async with client:
        waiting = set()
        for line in LINES:
            ack = await client.send(line)
            waiting.add(ack.message_id)
            print(f"alice: {line}")
        async for message in client:
            print(f"{message.address.agent}: {text_of(message)}")
            waiting.discard(message.reply_to)
            if not waiting:
                break


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except TrunklineError as error:
        raise SystemExit(str(error)) from None
