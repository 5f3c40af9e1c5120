"""Chat client that asks a few questions and prints the streamed replies: python examples/chat_client.py"""

import asyncio
import os
import ssl

from trunkline_client import Client, ClientSettings, Snapshot, TrunklineError, text_of

URL = os.environ.get("TRUNKLINE_URL", "ws://127.0.0.1:8080")
CA = os.environ.get("TRUNKLINE_CA")
QUESTIONS = ["Hello", "Is anyone there?", "Goodbye"]


async def main() -> None:
    client = Client(
        URL,
        tenant="demo",
        agent="echo",
        platform="web",
        conversation="person:alice",
        user="alice",
        settings=ClientSettings(ssl=ssl.create_default_context(cafile=CA) if CA else None),
    )
    async with client:
        for question in QUESTIONS:
            print(f"alice: {question}")
            async with client.ask(question) as reply:
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
