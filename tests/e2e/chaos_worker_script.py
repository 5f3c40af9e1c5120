"""Worker on the client library with deterministic answers, which tests kill at any moment.

Prints `attached` each time it attaches. A question is `<count> <anything>`; WORDS_PAUSE_S is the pause after
each word.
"""

from __future__ import annotations

import asyncio
import logging
import os

from trunkline_client import Message, Worker, text_of

PAUSE_S = float(os.environ.get("WORDS_PAUSE_S", "0.02"))


def answer_to(question: str) -> str:
    """Return the expected answer to a question."""
    count = int(question.split()[0])
    return "".join(f"{question}: word {number}; " for number in range(count))


def words(text: str) -> list[str]:
    """Split a text into pieces."""
    return [f"{word}; " for word in text.split("; ")[:-1]]


worker = Worker(
    os.environ.get("TRUNKLINE_ROUTER", ""),
    tenant="demo",
    agents=["echo"],
    capacity=int(os.environ.get("WORKER_CAPACITY", "64")),
    on_attached=lambda _: print("attached", flush=True),  # noqa: T201
)


@worker.handler
async def answer(message: Message) -> None:
    """Stream the answer word by word, from where an earlier attempt stopped."""
    whole = answer_to(text_of(message))
    async with worker.reply(message) as out:
        rest = whole.removeprefix(out.text)
        assert out.text + rest == whole, f"{out.text!r} is not a prefix of {whole!r}"
        for word in words(rest):
            await out.write(word)
            await asyncio.sleep(PAUSE_S)
        assert out.text == whole


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(worker.run())
