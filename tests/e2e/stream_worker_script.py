"""Worker that streams one reply and stops at a chosen step, where tests kill it. Prints each step.

STOP_AFTER: `delivered`, `opened`, `added`, `durable`, `ended`, or empty to finish.
"""

from __future__ import annotations

import asyncio
import os

from tests.e2e.streaming_worker import StreamingWorker

TEXTS = [f"word {n} " for n in range(10)]
WHOLE = "".join(TEXTS)


async def serve(stop_after: str) -> None:
    """Answer one question word by word, continuing from the log."""

    async def reached(step: str) -> None:
        print(step, flush=True)  # noqa: T201
        if step == stop_after:
            await asyncio.Event().wait()

    async with StreamingWorker(os.environ["TRUNKLINE_ROUTER"], ident=f"pid-{os.getpid()}") as producer:
        await reached("attached")
        delivery = await producer.wait_for_delivery("question")
        await reached("delivered")
        number, opened = await producer.open(delivery.message.id, delivery_id=delivery.delivery_id)
        index = opened.message.next_index
        print(f"from {index} {opened.message.state}", flush=True)  # noqa: T201
        await reached("opened")
        if opened.message.state == 1:
            await producer.add(number, index, *TEXTS[index:5])
            await reached("added")
            await producer.wait_durable(number, 5)
            await reached("durable")
            await producer.add(number, max(index, 5), *TEXTS[max(index, 5) :])
            ended = await producer.end(number, len(TEXTS))
            assert ended.state == 2, ended
        await reached("ended")
        await producer.settle(delivery.delivery_id)
        await reached("settled")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(os.environ["STOP_AFTER"]))
