"""Agent that repeats each message. Start a router, then: python examples/echo_agent.py"""

import argparse
import asyncio
import os
import signal

from trunkline_client import Message, Refused, Worker, load_credentials_from_environment, text_of


def answer(message: Message) -> str:
    return f"You said: {text_of(message)}"


async def main(router: str) -> None:
    def print_attached(_: object) -> None:
        print(f"Agent `echo` of tenant `demo` is attached to {router}", flush=True)

    worker = Worker(
        router,
        tenant="demo",
        agents=["echo"],
        capacity=1000,
        on_attached=print_attached,
        **load_credentials_from_environment(),
    )
    draining: list[asyncio.Task[bool]] = []

    def drain() -> None:
        draining.append(asyncio.create_task(worker.drain(5)))

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, drain)
    await worker.run(answer)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--router", default=os.environ.get("TRUNKLINE_ROUTER", "127.0.0.1:50051"))
    try:
        asyncio.run(main(options.parse_args().router))
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
