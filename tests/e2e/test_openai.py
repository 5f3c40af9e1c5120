"""OpenAI's chat completions on the wire, called by OpenAI's own SDK for Python."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from trunkline.v1.agent_service_pb2 import ReplyDeltas
from trunkline.v1.message_pb2 import MESSAGE_STATE_FAILED, Delta
from trunkline.v1.tenant_pb2 import AGENT_MEDIA_IMAGES, AgentSettings

from tests.e2e.fleet import Fleet, fleet_of
from tests.e2e.operator_client import OperatorClient, client_auth, wait_until_known
from tests.e2e.polling import wait_until
from tests.e2e.streaming_worker import StreamingWorker
from tests.support.patience import patient
from tests.support.signing import Signer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trunkline.v1.agent_service_pb2 import Delivery

    from tests.support.processes import Process

pytestmark = pytest.mark.usefixtures("_patient")

SECRET = "sk-of-acme"
SIGNER = Signer("acme")
HI = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
TITLE = "### Task:\nGenerate a title.\n### Chat History:\n<chat_history>\nUSER: hi\n</chat_history>"


@pytest.fixture
async def _patient() -> AsyncIterator[None]:
    async with asyncio.timeout(patient(60)):
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("openai"), 1, TRUNKLINE_REPLY_LEASE_S="30") as fleet:
        with OperatorClient(fleet.router.address, fleet.operator_key, fleet.edges) as operator:
            operator.create(
                "acme",
                client_auth=client_auth([SIGNER], [SECRET]),
                agents={"painter": AgentSettings(accepts=AGENT_MEDIA_IMAGES)},
                exclude_background_tasks=True,
            )
        wait_until_known("acme", *fleet.edges)
        yield fleet


@pytest.fixture
async def worker(fleet: Fleet) -> AsyncIterator[StreamingWorker]:
    async with StreamingWorker(fleet.router.address) as worker:
        yield worker


@pytest.fixture
async def client(edge: Process) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(**options(edge)) as client:
        yield client


def options(edge: Process, tenant: str = "demo", key: str = "none", **more: Any) -> dict[str, Any]:
    """Options of an SDK's client."""
    base_url = f"http://{edge.address}/openai/{tenant}/v1"
    return {"base_url": base_url, "api_key": key, "timeout": patient(20), **more}


def conversation() -> dict[str, Any]:
    """Options of a call that names a new conversation."""
    return {"extra_headers": {"X-Conversation-Id": uuid.uuid4().hex}}


async def answer(worker: StreamingWorker, text: str, *texts: str, usage: bool = False) -> Delivery:
    """Answer the message with this text."""
    delivery, number = await worker.begin(text, *texts)
    count = len(texts)
    if usage:
        part = Delta(index=count)
        part.part.custom.name = "usage"
        part.part.custom.data.update({"prompt_tokens": 3, "completion_tokens": count})
        await worker.send(deltas=[ReplyDeltas(reply=number, deltas=[part])])
        count += 1
    await worker.end(number, count)
    await worker.settle(delivery.delivery_id)
    return delivery


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def unique() -> str:
    """A text that no other test says."""
    return f"question {uuid.uuid4().hex}"


# Models


async def test_agents_with_a_worker_are_models(client: AsyncOpenAI, worker: StreamingWorker) -> None:
    await wait_until_listed(client, "echo")
    model = await client.models.retrieve("echo")
    assert (model.id, model.object, model.owned_by) == ("echo", "model", "trunkline")
    with pytest.raises(openai.NotFoundError) as refused:
        await client.models.retrieve("nobody")
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


async def wait_until_listed(client: AsyncOpenAI, agent: str) -> None:
    deadline = time.monotonic() + patient(10)
    while agent not in [model.id async for model in client.models.list()]:
        assert time.monotonic() < deadline, f"{agent} is not listed"
        await asyncio.sleep(0.05)


async def test_declared_agents_are_models_that_a_token_may_restrict(edge: Process) -> None:
    restricted = SIGNER.token("ann", trunkline={"agents": ["painter"]})
    for key in (SECRET, SIGNER.token("ann"), restricted):
        async with AsyncOpenAI(**options(edge, "acme", key)) as client:
            assert [model.id async for model in client.models.list()] == ["painter"]
    elsewhere = SIGNER.token("ann", trunkline={"agents": ["other"]})
    async with AsyncOpenAI(**options(edge, "acme", elsewhere)) as client:
        assert [model.id async for model in client.models.list()] == []


async def test_unknown_keys_and_models_are_refused(edge: Process, client: AsyncOpenAI) -> None:
    async with AsyncOpenAI(**options(edge, "acme", "sk-wrong")) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            await stranger.models.list()
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model="painter", messages=HI)
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="no body", messages=HI)
    assert missing.value.code == "model_not_found"
    async with AsyncOpenAI(**options(edge, "nobody")) as lost:
        with pytest.raises(openai.NotFoundError) as unknown:
            await lost.models.list()
    assert unknown.value.code == "UNKNOWN_TENANT"


# Completions


async def test_a_reply_is_streamed_as_it_is_written(client: AsyncOpenAI, worker: StreamingWorker) -> None:
    text = unique()
    stream = await client.chat.completions.create(model="echo", messages=said(text), stream=True)
    delivery, number = await worker.begin(text, "one ", "two ")
    chunks = [await anext(stream), await anext(stream)]
    await worker.add(number, 2, "three")
    await worker.end(number, 3)
    chunks += [chunk async for chunk in stream]
    await worker.settle(delivery.delivery_id)
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert {(chunk.id, chunk.model) for chunk in chunks} == {(chunks[0].id, "echo")}
    assert stream.response.headers["x-conversation-id"]


async def test_a_reply_is_returned_whole_with_its_usage(client: AsyncOpenAI, worker: StreamingWorker) -> None:
    text = unique()
    waiting = asyncio.create_task(client.chat.completions.create(model="echo", messages=said(text)))
    await answer(worker, text, "one ", "two", usage=True)
    completion = await waiting
    assert completion.choices[0].message.content == "one two"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (3, 5)
    text = unique()
    stream = await client.chat.completions.create(
        model="echo", messages=said(text), stream=True, stream_options={"include_usage": True}
    )
    await answer(worker, text, "one", usage=True)
    *_, last = [chunk async for chunk in stream]
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens) == ([], 1)


async def test_the_synchronous_client_is_served_too(edge: Process, worker: StreamingWorker) -> None:
    text = unique()

    def call() -> tuple[str, str]:
        with OpenAI(**options(edge)) as client:
            whole = client.chat.completions.create(model="echo", messages=said(text), **conversation())
            with client.chat.completions.create(
                model="echo", messages=said(text + "?"), stream=True
            ) as chunks:
                streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return whole.choices[0].message.content or "", streamed

    calling = asyncio.create_task(asyncio.to_thread(call))
    await answer(worker, text, "whole")
    await answer(worker, text + "?", "a", "b")
    assert await calling == ("whole", "ab")


async def test_a_reply_that_fails_raises_and_never_ends_like_a_complete_one(
    client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    text = unique()
    stream = await client.chat.completions.create(model="echo", messages=said(text), stream=True)
    delivery, number = await worker.begin(text, "half")
    await worker.end(number, 1, MESSAGE_STATE_FAILED)
    with pytest.raises(openai.APIError):
        [chunk async for chunk in stream]
    await worker.settle(delivery.delivery_id)
    text = unique()
    waiting = asyncio.create_task(client.chat.completions.create(model="echo", messages=said(text)))
    delivery, number = await worker.begin(text, "half")
    await worker.end(number, 1, MESSAGE_STATE_FAILED)
    with pytest.raises(openai.InternalServerError):
        await waiting
    await worker.settle(delivery.delivery_id)


async def test_a_reply_is_cancelled_by_a_call_of_its_own_and_never_by_leaving(
    client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    text, headers = unique(), conversation()["extra_headers"]

    async def call(attempt: int) -> Any:
        again = {**headers, "x-stainless-retry-count": str(attempt)}
        return await client.chat.completions.create(
            model="echo", messages=said(text), stream=True, extra_headers=again
        )

    left = await call(0)
    delivery, number = await worker.begin(text, "half")
    await anext(left)
    await left.close()
    stream = await call(1)
    first = await anext(stream)
    assert not worker.cancelled
    assert not any(ended.reply == number for ended in worker.ended)
    cancelled = await client.post(
        f"/chat/completions/{first.id}/cancel",
        body={"model": "echo"},
        cast_to=object,
        options={"headers": headers},
    )
    assert cancelled == {"id": first.id, "object": "chat.completion.cancelled", "status": "cancelled"}
    with pytest.raises(openai.APIError) as raised:
        [chunk async for chunk in stream]
    assert raised.value.code == "reply_cancelled"
    await worker.settle(delivery.delivery_id)


# Bad input


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"extra_headers": {"X-Conversation-Id": "a b"}}, "x-conversation-id"),
    ],
)
async def test_bad_input_is_refused_in_openais_shape_and_nothing_is_stored(
    fields: dict[str, Any], param: str, client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    await wait_until_listed(client, "echo")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(**{"model": "echo", "messages": HI, **fields})
    assert (refused.value.param, refused.value.code) == (param, "INVALID_ARGUMENT")
    assert refused.value.type == "invalid_request_error"
    text = unique()
    waiting = asyncio.create_task(client.chat.completions.create(model="echo", messages=said(text)))
    await answer(worker, text, "ok")
    await waiting
    assert [each.message.parts[0].text.text for each in worker.deliveries] == [text]


async def test_images_reach_an_agent_that_accepts_them(edge: Process, fleet: Fleet) -> None:
    async with AsyncOpenAI(**options(edge, "acme", SECRET, max_retries=0)) as client:
        messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "what?"}, IMAGE]}]
        # No worker answers: the call is given up once the message is stored.
        stream = await client.chat.completions.create(
            model="painter", messages=messages, stream=True, **conversation()
        )
        await stream.close()
        audio = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(
                model="painter", messages=[{"role": "user", "content": [audio]}]
            )


async def test_background_tasks_are_answered_without_an_agent(edge: Process) -> None:
    async with AsyncOpenAI(**options(edge, "acme", SECRET)) as client:
        completion = await client.chat.completions.create(model="painter", messages=said(TITLE))
        assert completion.choices[0].message.content == ""
        stream = await client.chat.completions.create(
            model="painter", messages=HI, stream=True, extra_headers={"X-Background-Task": "tags_generation"}
        )
        assert [chunk.choices[0].finish_reason async for chunk in stream] == [None, "stop"]


# Conversations


async def test_a_named_conversation_keeps_its_history_and_a_new_one_gets_the_callers(
    client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    named, text = conversation(), unique()
    history = [
        {"role": "system", "content": "brief"},
        *said("before"),
        {"role": "assistant", "content": "yes"},
    ]
    homes = []
    for turn in ("1", "2"):
        asked = [*history, *said(text + turn)]
        waiting = asyncio.create_task(
            client.chat.completions.create(model="echo", messages=asked, **named)  # type: ignore[call-overload]
        )
        delivery = await answer(worker, text + turn, turn)
        await waiting
        homes.append(delivery.message.address)
        names = [part.custom.name for part in delivery.message.parts[1:]]
        assert names == (["openai.messages"] if turn == "1" else [])
    assert homes[0] == homes[1]
    asked = [*history, *said(text + "3")]
    waiting = asyncio.create_task(client.chat.completions.create(model="echo", messages=asked))  # type: ignore[call-overload]
    delivery = await answer(worker, text + "3", "3")
    await waiting
    assert delivery.message.address != homes[0]
    assert delivery.message.parts[1].custom.json == (
        '[{"role":"system","content":"brief"},{"role":"user","content":"before"},'
        '{"role":"assistant","content":"yes"}]'
    )


async def test_a_user_is_a_conversation_and_a_call_without_one_is_its_own(
    client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    text, user = unique(), uuid.uuid4().hex
    homes = []
    for index, more in enumerate(({"user": user}, {"user": user}, {"user": user + "/2"}, {}, {})):
        waiting = asyncio.create_task(
            client.chat.completions.create(model="echo", messages=said(f"{text}{index}"), **more)  # type: ignore[call-overload]
        )
        homes.append((await answer(worker, f"{text}{index}", "ok")).message.address.conversation.id)
        await waiting
    assert homes[0] == homes[1]
    assert len(set(homes)) == 4


async def test_users_with_tokens_reach_only_conversations_of_their_own(edge: Process, fleet: Fleet) -> None:
    named = conversation()
    async with StreamingWorker(
        fleet.router.address, "painter", tenant="acme", key=worker_key(fleet)
    ) as worker:
        homes = []
        for user in ("ann", "bob"):
            async with AsyncOpenAI(**options(edge, "acme", SIGNER.token(user))) as client:
                text = unique()
                waiting = asyncio.create_task(
                    client.chat.completions.create(model="painter", messages=said(text), user="eve", **named)
                )
                delivery = await answer(worker, text, "ok")
                await waiting
                assert delivery.message.author.user == user
                homes.append(delivery.message.address.conversation.id)
    assert len(set(homes)) == 2


def worker_key(fleet: Fleet) -> str:
    with OperatorClient(fleet.router.address, fleet.operator_key) as operator:
        return str(operator.api_key("acme", "ATTACH").secret)


# Retries


@pytest.mark.parametrize("named", [False, True])
async def test_a_retry_gets_the_first_attempts_reply_and_a_repeat_another(
    named: bool, client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    text, where = unique(), conversation()["extra_headers"] if named else {}

    def attempt(number: int) -> asyncio.Task[Any]:
        headers = {**where, "x-stainless-retry-count": str(number)}
        return asyncio.create_task(
            client.chat.completions.create(model="echo", messages=said(text), extra_headers=headers)
        )

    first = attempt(0)
    delivery = await worker.wait_for_delivery(text)
    first.cancel()
    second = attempt(1)
    await answer(worker, text, "once")
    assert (await second).choices[0].message.content == "once"
    # Its answer is in the log by now.
    assert (await attempt(2)).choices[0].message.content == "once"
    assert len(worker.deliveries) == 1
    again = attempt(0)
    await wait_until(lambda: len(worker.deliveries) == 2, "a repeat is another message")
    repeated = worker.deliveries[1]
    assert repeated.message.id != delivery.message.id
    assert repeated.message.parts[0].text.text == text
    number, _ = await worker.open("repeated" + text[-8:], delivery_id=repeated.delivery_id)
    await worker.add(number, 0, "twice")
    await worker.end(number, 1)
    await worker.settle(repeated.delivery_id)
    assert (await again).choices[0].message.content == "twice"


async def test_an_idempotency_key_makes_any_call_repeatable(
    client: AsyncOpenAI, worker: StreamingWorker
) -> None:
    text, headers = unique(), {"Idempotency-Key": uuid.uuid4().hex}

    def call(said_text: str) -> asyncio.Task[Any]:
        return asyncio.create_task(
            client.chat.completions.create(model="echo", messages=said(said_text), extra_headers=headers)
        )

    first = call(text)
    await answer(worker, text, "once")
    assert (await first).choices[0].message.content == "once"
    assert (await call(text)).choices[0].message.content == "once"
    with pytest.raises(openai.ConflictError) as refused:
        await call("something else")
    assert refused.value.code == "IDEMPOTENCY_MISMATCH"
