"""An agent that answers word by word. Start a router, then: python examples/streaming_agent.py

By itself it knows what stands in Trunkline's own README and docs, and tells stories. With --base-url, or
OPENAI_BASE_URL, whatever speaks the OpenAI API's /chat/completions answers instead; that needs httpx.

    python -m trunkline_client chat --agent guide        Ctrl-C stops an answer
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trunkline.v1.message_pb2 import ReasoningPart, ToolCallPart
from trunkline_client import (
    Backend,
    Message,
    Part,
    Refused,
    Role,
    StreamedReply,
    Worker,
    access_from_environment,
    text_of,
)

ROOT = Path(__file__).resolve().parent.parent
HISTORY_MESSAGES = 20


class Source(Protocol):
    """Where answers come from."""

    def answer(self, message: Message, said: str) -> AsyncIterator[str | Part]:
        """The pieces of an answer; `said` is what an attempt before this one said of it already."""
        ...


# What it knows by itself.


class Section(NamedTuple):
    """A piece of a document."""

    file: str
    title: str
    text: str


class Guide:
    """Answers from Trunkline's own documents.

    The same question has the same answer, so an answer that another worker began is completed.
    """

    def __init__(self, root: Path, pace_s: float) -> None:
        files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        self._sections = [each for file in files if file.exists() for each in sections(file)]
        self._pace_s = pace_s

    async def answer(self, message: Message, said: str) -> AsyncIterator[str | Part]:
        whole = self.text(text_of(message), message.id)
        rest = whole.removeprefix(said) if whole.startswith(said) else f"\n\n{whole}"
        for word in re.findall(r"\s*\S+\s*", rest):
            yield word
            await asyncio.sleep(self._pace_s)

    def text(self, question: str, seed: str) -> str:
        """The answer to a question."""
        asked = words(question)
        if "story" in asked or "tale" in asked:
            return "".join(story(random.Random(seed)))
        found = self._search(asked)
        if found is not None:
            return f"**{found.title}** ({found.file})\n\n{found.text}"
        titles = random.Random(seed).sample(self._sections, min(4, len(self._sections)))
        topics = "".join(f"\n- {each.title}" for each in titles)
        about = f"I could tell you about:\n{topics}\n\nOr ask" if topics else "Ask"
        return (
            f"Hello! I am the guide to Trunkline, and read nothing but its documents. {about} me for a story."
        )

    def _search(self, asked: set[str]) -> Section | None:
        """The section with most of the rare words of a question, best if its title says little else."""
        rarity = {
            word: 1 / (1 + sum(word in words(f"{each.title} {each.text}") for each in self._sections))
            for word in asked
        }

        def score(section: Section) -> float:
            title, body = words(section.title), words(section.text)
            return sum(
                rarity[word] * ((word in body) + 2 * (word in title) / (len(title) or 1)) for word in asked
            )

        best = max(self._sections, key=score, default=None)
        return best if best is not None and score(best) > 0 else None


_COMMON = frozenset(
    """a about an and are as at be by can do does for from have hello hi how if in is it me my of on or
    please say so tell that the there this to what when where which who why will with work works you
    your""".split()  # noqa: SIM905 -- a list of words is read as a text
)


def words(text: str) -> set[str]:
    """The words of a text that mean something, without the s at their end."""
    found = re.findall(r"[a-z0-9_]{2,}", text.lower())
    return {re.sub(r"(?<=\w\w)s$", "", each) for each in found if each not in _COMMON}


def sections(file: Path) -> Iterator[Section]:
    """A Markdown file's sections that have a text."""
    title, lines, in_code = file.stem, list[str](), False
    for line in [*file.read_text().splitlines(), "# end"]:
        in_code ^= line.startswith("```")
        if line.startswith("#") and not in_code:
            text = "\n".join(lines).strip()
            if text:
                yield Section(file.name, title, text)
            title, lines = line.lstrip("# "), []
        else:
            lines.append(line)


def story(dice: random.Random) -> Iterator[str]:
    """A story; the same dice tell the same."""
    hero = dice.choice(["a small message", "an early delta", "a shy ack", "a signal nobody logged"])
    home = dice.choice(["a phone at the seaside", "a terminal in an attic", "a tram in the rain"])
    friend = dice.choice(["an old cursor", "a heartbeat", "a worker on her night shift", "a retired socket"])
    yield f"Once there was {hero}, and it lived in {home}. One day it set out to cross the bridge.\n\n"
    places = ["at the edge", "on the link", "in the queue", "before the log", "beside the journal"]
    troubles = [
        "the lights went out",
        "a router fell asleep",
        "somebody pulled a cable",
        "a storm rose",
    ]
    helps = ["held its hand", "counted to its position", "lent it a lease", "showed it the way by its epoch"]
    ends = ["and nothing was lost", "and they went on from there", "and everything was in order again"]
    for number in range(1, 13):
        yield (
            f"On the {number}. night, {dice.choice(places)}, {dice.choice(troubles)}. But {friend} "
            f"{dice.choice(helps)}, {dice.choice(ends)}.\n\n"
        )
    yield "And when it had been written to disk, it was acknowledged, and lived happily ever after."


# What a model says.


class ModelError(Exception):
    """The model's server did not answer, or broke off."""


class Model:
    """Answers from an OpenAI-compatible endpoint, which is told what was said before."""

    def __init__(self, base_url: str, api_key: str, model: str, backend: Backend) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._backend = backend

    async def answer(self, message: Message, said: str) -> AsyncIterator[str | Part]:
        import httpx

        page = await self._backend.list_messages(
            message.address, before=message.position, limit=HISTORY_MESSAGES
        )
        body = {"model": self._model, "stream": True, "messages": turns(page.messages, message, said)}
        timeout = httpx.Timeout(10.0, read=120.0)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, headers=self._headers) as client,
                client.stream("POST", self._url, json=body) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ModelError(complaint(response.status_code, await response.aread()))
                calls: dict[int, str] = {}
                async for chunk in chunks(response.aiter_lines()):
                    for piece in pieces(chunk, calls):
                        yield piece
        except httpx.HTTPError as error:
            raise ModelError(f"The model's server broke off: {error or type(error).__name__}") from error


def turns(before: Iterable[Message], message: Message, said: str) -> list[dict[str, str]]:
    """A conversation as the endpoint takes it; after an attempt that broke off it is asked to go on."""
    found = [
        {"role": "user" if each.author.role == Role.ROLE_USER else "assistant", "content": text_of(each)}
        for each in [*before, message]
        if text_of(each)
    ]
    if said:
        found.append({"role": "assistant", "content": said})
        found.append({"role": "user", "content": "Go on exactly where you stopped, repeating nothing."})
    return found


async def chunks(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Raises ModelError where it ends without saying so, or holds an error."""
    finished = False
    async for line in lines:
        if not line.startswith("data:"):
            continue  # comments, empty lines, other fields
        event = line.removeprefix("data:").strip()
        if event == "[DONE]":
            return
        try:
            chunk = json.loads(event)
        except ValueError:
            raise ModelError("The model's server sent what is no JSON") from None
        if "error" in chunk:
            raise ModelError(f"The model failed: {reason(chunk)}")
        finished = finished or any(each.get("finish_reason") for each in chunk.get("choices", []))
        yield chunk
    if not finished:
        raise ModelError("The model's server broke off in the middle of its answer")


def pieces(chunk: dict[str, Any], calls: dict[int, str]) -> Iterator[str | Part]:
    """What one event adds; `calls` keeps the ids of tool calls, which only their first pieces name."""
    for choice in chunk.get("choices", [])[:1]:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought:
            yield Part(reasoning=ReasoningPart(text=thought))
        if delta.get("content"):
            yield delta["content"]
        for call in delta.get("tool_calls") or []:
            index, function = call.get("index", 0), call.get("function") or {}
            call_id = calls.setdefault(index, call.get("id") or f"call-{index}")
            yield Part(
                tool_call=ToolCallPart(
                    call_id=call_id,
                    name=function.get("name") or "",
                    arguments=function.get("arguments") or "",
                )
            )


def complaint(status: int, body: bytes) -> str:
    """What an answer other than 200 says."""
    try:
        told = reason(json.loads(body))
    except ValueError:
        told = body.decode(errors="replace")[:200].strip()
    return f"The model's server answered {status}: {told or 'without a reason'}"


def reason(body: Any) -> str:
    """What an error's body says."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


# The agent.


async def say(out: StreamedReply, answer: AsyncIterator[str | Part]) -> None:
    """Says the pieces of an answer."""
    async for piece in answer:
        if isinstance(piece, str):
            await out.write(piece)
        elif piece.HasField("reasoning"):
            await out.write_reasoning(piece.reasoning.text)
        else:
            await out.add(piece)


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT; then answers what it has, and ends."""

    def attached(_: object) -> None:
        print(f"The agent `{options.agent}` is attached to {options.router}", flush=True)

    access = access_from_environment()
    worker = Worker(
        options.router, tenant=options.tenant, agents=[options.agent], on_attached=attached, **access
    )
    async with Backend(options.router, **access) as backend:
        source: Source = Guide(ROOT, options.pace_s)
        if options.base_url:
            source = Model(options.base_url, options.api_key, options.model, backend)

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, name=options.agent) as out:
                await say(out, source.answer(message, out.text))

        draining: list[asyncio.Task[bool]] = []
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(
                each, lambda: draining.append(asyncio.create_task(worker.drain(10)))
            )
        await worker.run()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--router", default=env("TRUNKLINE_ROUTER", "127.0.0.1:50051"))
    parser.add_argument("--tenant", default="demo")
    parser.add_argument("--agent", default="guide", help="the agent that it serves")
    parser.add_argument("--pace-s", type=float, default=0.03, help="between two words of its own")
    parser.add_argument("--base-url", default=env("OPENAI_BASE_URL", ""), help="such as http://host/v1")
    parser.add_argument("--api-key", default=env("OPENAI_API_KEY", ""))
    parser.add_argument("--model", default=env("OPENAI_MODEL", "default"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        asyncio.run(serve(parse()))
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
