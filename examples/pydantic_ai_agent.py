"""Agent of the framework Pydantic AI, streamed: text, reasoning, and the tools that it calls.

Start a router with `make run`, which installs the framework too, then, in its `.venv`:

    python examples/pydantic_ai_agent.py --base-url http://127.0.0.1:11434/v1 --model qwen3
    python -m trunkline_client chat --agent dealer        Ctrl-C cancels a reply, and the model's run
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterable

from pydantic_ai import Agent, AgentRunResultEvent, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from trunkline.v1.message_pb2 import ReasoningPart, ToolCallPart, ToolResultPart
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

HISTORY_MESSAGES = 20


def roll_dice(sides: int) -> int:
    """Roll one die with this many sides."""
    return random.randint(1, sides)


def make_agent(options: argparse.Namespace) -> Agent:
    """Agent with one tool, at any server with the OpenAI API."""
    provider = OpenAIProvider(base_url=options.base_url, api_key=options.api_key or "none")
    model = OpenAIChatModel(options.model, provider=provider)
    return Agent(model, instructions="You deal games of chance. Be brief.", tools=[roll_dice])


class ModelError(Exception):
    """The model's answer ended early."""


async def answer(agent: Agent, question: str, history: list[ModelMessage]) -> AsyncIterator[str | Part]:
    """Pieces of the agent's answer. Closing this generator ends the run, its requests included."""
    async with agent.run_stream_events(question, message_history=history) as events:
        async for event in events:
            if (piece := piece_of(event)) is not None:
                yield piece
            elif isinstance(event, AgentRunResultEvent) and not has_finished(event.result.response):
                raise ModelError("The model's answer ended early")


def has_finished(response: ModelResponse) -> bool:
    """Whether the server finished its answer: the framework takes a lost connection for an end, too."""
    return bool((response.provider_details or {}).get("finish_reason"))


def piece_of(event: object) -> str | Part | None:
    """Part of a message for an event of the run; None if the event adds nothing."""
    match event:
        case PartStartEvent(part=TextPart(content=text)):
            return text
        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case PartStartEvent(part=ThinkingPart(content=thought)):
            return Part(reasoning=ReasoningPart(text=thought))
        case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=str(thought))):
            return Part(reasoning=ReasoningPart(text=thought))
        case FunctionToolCallEvent(part=call):
            return Part(
                tool_call=ToolCallPart(
                    call_id=call.tool_call_id, name=call.tool_name, arguments=call.args_as_json_str()
                )
            )
        case FunctionToolResultEvent(part=result):
            return Part(
                tool_result=ToolResultPart(
                    call_id=result.tool_call_id,
                    result=result.model_response_str(),
                    failed=result.outcome != "success",
                )
            )
    return None


def model_messages(messages: Iterable[Message]) -> list[ModelMessage]:
    """Conversation as the framework has it."""
    return [
        ModelRequest.user_text_prompt(text_of(each))
        if each.author.role == Role.ROLE_USER
        else ModelResponse(parts=[TextPart(text_of(each))])
        for each in messages
        if text_of(each)
    ]


def make_worker(options: argparse.Namespace, agent: Agent, backend: Backend) -> Worker:
    """Worker whose replies are runs of the agent."""

    def print_attached(_: object) -> None:
        print(f"Agent `{options.agent}` is attached to {options.router}", flush=True)

    worker = Worker(
        options.router,
        tenant=options.tenant,
        agents=[options.agent],
        on_attached=print_attached,
        **load_credentials_from_environment(),
    )

    @worker.handler
    async def handle(message: Message) -> None:
        page = await backend.list_messages(message.address, before=message.position, limit=HISTORY_MESSAGES)
        history = model_messages(page.messages)
        question = text_of(message)
        async with worker.reply(message, name=options.agent) as out:
            if out.text:  # an earlier attempt was cut off
                history += model_messages([message, out.message])
                question = "Continue exactly where you stopped, repeating nothing."
            await out.write_from(answer(agent, question, history))

    return worker


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; then finish the replies in progress and exit."""
    async with Backend(options.router, **load_credentials_from_environment()) as backend:
        worker = make_worker(options, make_agent(options), backend)
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
    parser.add_argument("--agent", default="dealer", help="name of the agent to serve")
    parser.add_argument("--base-url", default=env("OPENAI_BASE_URL", "https://api.openai.com/v1"))
    parser.add_argument("--api-key", default=env("OPENAI_API_KEY", ""))
    parser.add_argument("--model", default=env("OPENAI_MODEL", "gpt-5.2"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        asyncio.run(serve(parse()))
    except Refused as refusal:
        raise SystemExit(str(refusal)) from None
