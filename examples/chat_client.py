"""A client that asks a few things and shows the answers as they come: python examples/chat_client.py"""

import asyncio
import os

from trunkline_client import Client, Snapshot, TrunklineError, text_of

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:8080")
LINES = ["Hello", "Is anybody there?", "Good bye"]


async def main() -> None:
    client = Client(
        URL, tenant="demo", agent="echo", platform="web", conversation="person:alice", user="alice"
    )
    async with client:
        for line in LINES:
            print(f"alice: {line}")
            async with client.ask(line) as reply:
                print("agent: ", end="")
                async for delta in reply:
                    print(
                        text_of(delta.message) if isinstance(delta, Snapshot) else delta.text,
                        end="",
                        flush=True,
                    )
                print()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except TrunklineError as error:
        raise SystemExit(str(error)) from None
