"""Backend that sends a message to everyone connected to one agent on one platform.

python examples/broadcast.py "The kitchen closes in ten minutes"
"""

import asyncio
import os
import sys

from trunkline_client import Backend, TrunklineError, address, load_credentials_from_environment

ROUTER = os.environ.get("TRUNKLINE_ROUTER", "127.0.0.1:50051")


async def main(text: str) -> None:
    audience = address(tenant="demo", agent="echo", platform="web")
    async with Backend(ROUTER, **load_credentials_from_environment()) as backend:
        try:
            sent = await backend.broadcast(audience, text)
        except TrunklineError as error:
            raise SystemExit(str(error)) from None
    print(f"Message {sent.message_id} is stored; {sent.connections} connections receive it now.")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Hello, everyone"))
