"""Agent that streams its replies word by word. Start a router, then: python examples/streaming_agent.py

By default it answers from Trunkline's README and docs, and tells stories. With --base-url or OPENAI_BASE_URL
it asks a model at any server with the OpenAI API's /chat/completions; that requires httpx.

    python -m trunkline_client chat --agent guide        Ctrl-C cancels a reply
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
    Worker,
    load_credentials_from_environment,
    text_of,
)

ROOT = Path(__file__).resolve().parent.parent
HISTORY_MESSAGES = 20


class AnswerSource(Protocol):
    """Generates answers."""

    def answer(self, message: Message, sent: str) -> AsyncIterator[str | Part]:
        """Generate an answer in pieces; `sent` is the text that an earlier attempt has already streamed."""
        ...


# Answers from the documents.


class Section(NamedTuple):
    """Section of a document."""

    file: str
    title: str
    text: str


class Guide:
    """Answers from Trunkline's documents.

    Answers are deterministic, so a worker can complete an answer that another worker began.
    """

    def __init__(self, root: Path, pace_s: float) -> None:
        files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        self._sections = [each for file in files if file.exists() for each in sections(file)]
        self._pace_s = pace_s

    async def answer(self, message: Message, sent: str) -> AsyncIterator[str | Part]:
        whole = self.text(text_of(message), message.id)
        rest = whole.removeprefix(sent) if whole.startswith(sent) else f"\n\n{whole}"
        for word in re.findall(r"\s*\S+\s*", rest):
            yield word
            await asyncio.sleep(self._pace_s)

    def text(self, question: str, seed: str) -> str:
        """Answer a question; `seed` selects the story or the suggested topics."""
        keywords = keywords_of(question)
        if "story" in keywords or "tale" in keywords:
            return "".join(story(random.Random(seed)))
        section = self._search(keywords)
        if section is not None:
            return f"**{section.title}** ({section.file})\n\n{section.text}"
        titles = random.Random(seed).sample(self._sections, min(4, len(self._sections)))
        topics = "".join(f"\n- {each.title}" for each in titles)
        about = f"Ask me about one of these topics:\n{topics}\n\nOr ask" if topics else "Ask"
        return f"Hello! I am the guide to Trunkline: I answer from its documents. {about} me for a story."

    def _search(self, keywords: set[str]) -> Section | None:
        """Find the section with the most rare keywords of a question; prefers matches in a short title."""
        rarity = {
            word: 1 / (1 + sum(word in keywords_of(f"{each.title} {each.text}") for each in self._sections))
            for word in keywords
        }

        def score(section: Section) -> float:
            title, body = keywords_of(section.title), keywords_of(section.text)
            return sum(
                rarity[word] * ((word in body) + 2 * (word in title) / (len(title) or 1)) for word in keywords
            )

        best = max(self._sections, key=score, default=None)
        return best if best is not None and score(best) > 0 else None


_STOP_WORDS = frozenset(
    """a about an and are as at be by can do does for from have hello hi how if in is it me my of on or
    please say so tell that the there this to what when where which who why will with work works you
    your""".split()  # noqa: SIM905 -- a word list is easier to read as text
)


def keywords_of(text: str) -> set[str]:
    """Words of a text without stop words and without a trailing s."""
    found = re.findall(r"[a-z0-9_]{2,}", text.lower())
    return {re.sub(r"(?<=\w\w)s$", "", each) for each in found if each not in _STOP_WORDS}


def sections(file: Path) -> Iterator[Section]:
    """Sections of a Markdown file, without empty ones."""
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
    """Story; equal dice give the same one."""
    hero = dice.choice(["a small message", "an early delta", "a shy ack", "a signal nobody logged"])
    home = dice.choice(["a phone at the seaside", "a terminal in an attic", "a tram in the rain"])
    friend = dice.choice(["an old cursor", "a heartbeat", "a worker on her night shift", "a retired socket"])
    yield f"Once there was {hero}, and it lived in {home}. One day it set out to cross the bridge.\n\n"
    places = ["at the edge", "on the link", "in the queue", "before the log", "beside the outbox"]
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


# Answers from a model.


class ModelError(Exception):
    """The model server failed, or its answer ended early."""


class Model:
    """Answers from an OpenAI-compatible endpoint, which receives the conversation so far."""

    def __init__(self, base_url: str, api_key: str, model: str, backend: Backend) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._backend = backend

    async def answer(self, message: Message, sent: str) -> AsyncIterator[str | Part]:
        import httpx

        page = await self._backend.list_messages(
            message.address, before=message.position, limit=HISTORY_MESSAGES
        )
        body = {"model": self._model, "stream": True, "messages": chat_messages(page.messages, message, sent)}
        timeout = httpx.Timeout(10.0, read=120.0)
        # The environment's proxy is for other machines.
        mounts = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, headers=self._headers, mounts=mounts) as client,
                client.stream("POST", self._url, json=body) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ModelError(error_text(response.status_code, await response.aread()))
                calls: dict[int, str] = {}
                async for chunk in chunks(response.aiter_lines()):
                    for piece in pieces(chunk, calls):
                        yield piece
        except httpx.HTTPError as error:
            raise ModelError(
                f"The connection to the model server failed: {error or type(error).__name__}"
            ) from error


def chat_messages(before: Iterable[Message], message: Message, sent: str) -> list[dict[str, str]]:
    """Conversation in the endpoint's format; asks the model to continue if an earlier attempt was cut off."""
    messages = [
        {"role": "user" if each.author.role == Role.ROLE_USER else "assistant", "content": text_of(each)}
        for each in [*before, message]
        if text_of(each)
    ]
    if sent:
        messages.append({"role": "assistant", "content": sent})
        messages.append({"role": "user", "content": "Continue exactly where you stopped, repeating nothing."})
    return messages


async def chunks(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Events of a stream. Raises ModelError if it contains an error or ends before the answer is complete."""
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
            raise ModelError("The model server sent invalid JSON") from None
        if "error" in chunk:
            raise ModelError(f"The model failed: {reason(chunk)}")
        finished = finished or any(each.get("finish_reason") for each in chunk.get("choices", []))
        yield chunk
    if not finished:
        raise ModelError("The model server ended its answer early")


def pieces(chunk: dict[str, Any], calls: dict[int, str]) -> Iterator[str | Part]:
    """Additions in one event; `calls` keeps the ids of tool calls, which only their first pieces carry."""
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


def error_text(status: int, body: bytes) -> str:
    """Error text for a response whose status is not 200."""
    try:
        cause = reason(json.loads(body))
    except ValueError:
        cause = body.decode(errors="replace")[:200].strip()
    return f"The model server answered {status}: {cause or 'no reason given'}"


def reason(body: Any) -> str:
    """Reason in the body of an error response."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


# The agent.


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; then finish the deliveries in progress and exit."""

    def print_attached(_: object) -> None:
        print(f"Agent `{options.agent}` is attached to {options.router}", flush=True)

    credentials = load_credentials_from_environment()
    worker = Worker(
        options.router,
        tenant=options.tenant,
        agents=[options.agent],
        on_attached=print_attached,
        **credentials,
    )
    async with Backend(options.router, **credentials) as backend:
        source: AnswerSource = Guide(ROOT, options.pace_s)
        if options.base_url:
            source = Model(options.base_url, options.api_key, options.model, backend)

        @worker.handler
        async def answer(message: Message) -> None:
            async with worker.reply(message, name=options.agent) as out:
                await out.write_from(source.answer(message, out.text))

        draining: list[asyncio.Task[bool]] = []
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(
                signal_number, lambda: draining.append(asyncio.create_task(worker.drain(10)))
            )
        await worker.run()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--router", default=env("TRUNKLINE_ROUTER", "127.0.0.1:50051"))
    parser.add_argument("--tenant", default="demo")
    parser.add_argument("--agent", default="guide", help="name of the agent to serve")
    parser.add_argument(
        "--pace-s", type=float, default=0.03, help="pause between two words of the guide, in seconds"
    )
    parser.add_argument(
        "--base-url", default=env("OPENAI_BASE_URL", ""), help="model server, such as http://host/v1"
    )
    parser.add_argument("--api-key", default=env("OPENAI_API_KEY", ""))
    parser.add_argument("--model", default=env("OPENAI_MODEL", "default"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        asyncio.run(serve(parse()))
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
