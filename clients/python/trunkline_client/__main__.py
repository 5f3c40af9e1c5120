"""The `trunkline` command: chat with an agent, broadcast, and read a router's state."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial
from ssl import create_default_context
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from trunkline.v1.agent_service_pb2 import DeadLetter
from trunkline.v1.message_pb2 import Message, Role

from trunkline_client import builders
from trunkline_client.backend import Backend
from trunkline_client.chat import chat as run_chat
from trunkline_client.client import Client
from trunkline_client.credentials import load_credentials
from trunkline_client.errors import TrunklineError
from trunkline_client.settings import ClientSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Chat with an agent, broadcast, and read a router's state.",
)

Tenant = Annotated[str, typer.Option(help="Tenant.")]
Agent = Annotated[str, typer.Option(help="Agent; all of the tenant's if empty.")]
Platform = Annotated[str, typer.Option(help="Platform; all of the agent's if empty.")]
ConversationName = Annotated[str, typer.Option(help="person:<id> or group:<id>.")]
User = Annotated[str, typer.Option(help="User, instead of agent, platform and conversation.")]
Router = Annotated[
    str,
    typer.Option(
        envvar="TRUNKLINE_ROUTER",
        help="Router's gRPC address, host:port; several that share one database are separated by commas.",
    ),
]
Key = Annotated[str, typer.Option("--api-key", envvar="TRUNKLINE_API_KEY", help="API key of the tenant.")]
Ca = Annotated[
    str,
    typer.Option(envvar="TRUNKLINE_CA", help="PEM file of trusted certificate authorities; turns TLS on."),
]
Tls = Annotated[
    bool,
    typer.Option("--tls", envvar="TRUNKLINE_TLS", help="Use TLS with public certificate authorities."),
]
Proxy = Annotated[
    bool,
    typer.Option(
        "--proxy",
        envvar="TRUNKLINE_ROUTER_PROXY",
        help="Connect through the proxy in grpc_proxy, https_proxy or http_proxy.",
    ),
]


@app.command()
def chat(
    url: Annotated[
        str, typer.Option("--url", "--edge", envvar="TRUNKLINE_URL", help="Edge's URL.")
    ] = "ws://127.0.0.1:8080",
    tenant: Tenant = "demo",
    agent: Annotated[str, typer.Option(help="Agent.")] = "guide",
    platform: Annotated[str, typer.Option(help="Platform.")] = "web",
    conversation: Annotated[str, typer.Option(help="person:<id> or group:<id>; your own if empty.")] = "",
    user: Annotated[str, typer.Option(help="User; your login name if empty.")] = "",
    token: Annotated[str, typer.Option(envvar="TRUNKLINE_TOKEN", help="JSON Web Token of the user.")] = "",
    ca: Ca = "",
    once: Annotated[str, typer.Option(help="Send this text, print the reply and exit.")] = "",
    wait_s: Annotated[
        float, typer.Option(help="Off a terminal: seconds of silence before giving up on replies.")
    ] = 10.0,
) -> None:
    """Chat with an agent; lines come from standard input, which may be a pipe."""
    name = user or getpass.getuser()

    async def run() -> int:
        client = Client(
            url,
            tenant=tenant,
            agent=agent,
            platform=platform,
            conversation=conversation or f"person:{name}",
            user=name,
            token=token,
            settings=ClientSettings(open_timeout_s=0, ssl=create_default_context(cafile=ca) if ca else None),
        )
        return await run_chat(client, Console(), name, agent, once, wait_s)

    _run(run)


@app.command()
def broadcast(
    text: Annotated[str, typer.Argument(help="Text of the message.")],
    tenant: Tenant = "demo",
    agent: Agent = "",
    platform: Platform = "",
    conversation: ConversationName = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    proxy: Proxy = False,
    require_connection: Annotated[bool, typer.Option(help="Fail if nobody is connected.")] = False,
    ephemeral: Annotated[bool, typer.Option(help="Do not store the message.")] = False,
) -> None:
    """Send a message to an address, as a backend."""

    async def send() -> int:
        to = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        async with Backend(router, **load_credentials(api_key, ca, tls, proxy)) as backend:
            answer = await backend.broadcast(
                to, text, require_connection=require_connection, ephemeral=ephemeral
            )
        stored = f"position {answer.position.seq}" if answer.HasField("position") else "not stored"
        _print(f"{answer.message_id}  {stored}, {answer.connections} connected")
        return 0

    _run(send)


@app.command()
def history(
    tenant: Tenant = "demo",
    agent: Agent = "",
    platform: Platform = "",
    conversation: ConversationName = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    proxy: Proxy = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="Number of messages.")] = 50,
) -> None:
    """List the newest messages of an address."""

    async def show() -> int:
        of = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        async with Backend(router, **load_credentials(api_key, ca, tls, proxy)) as backend:
            page = await backend.list_messages(of, limit=limit)
        table = Table("seq", "time", "author", "text", title=builders.address_name(of))
        for message in page.messages:
            table.add_row(
                str(message.position.seq), _time(message), _author(message), builders.text_of(message)
            )
        Console().print(table)
        return 0

    _run(show)


@app.command()
def connections(
    tenant: Tenant = "demo",
    agent: Agent = "",
    platform: Platform = "",
    conversation: ConversationName = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    proxy: Proxy = False,
) -> None:
    """List connections."""

    async def show() -> int:
        of = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        table = Table("connection", "address", "user", "protocol", "since", "edge")
        async with Backend(router, **load_credentials(api_key, ca, tls, proxy)) as backend:
            async for each in backend.connections(of):
                since = each.connected_at.ToJsonString()
                name = builders.address_name(each.address)
                table.add_row(each.connection_id, name, each.user, each.protocol, since, each.edge_id)
        Console().print(table)
        return 0

    _run(show)


@app.command()
def deadletters(
    agent: Annotated[str, typer.Option(help="Agent.")],
    tenant: Tenant = "demo",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    proxy: Proxy = False,
    replay: Annotated[
        list[int] | None, typer.Option(help="Id of a dead letter to deliver again; may be repeated.")
    ] = None,
    replay_all: Annotated[bool, typer.Option(help="Deliver all dead letters again.")] = False,
) -> None:
    """List an agent's dead letters, or deliver them again."""

    async def list_or_replay() -> int:
        async with Backend(router, **load_credentials(api_key, ca, tls, proxy)) as backend:
            found = [] if replay else [each async for each in _dead_letters(backend, tenant, agent)]
            if not replay and not replay_all:
                Console().print(_dead_letter_table(found, agent))
                return 0
            ids = replay or [each.delivery_id for each in found]
            replayed = 0
            for start in range(0, len(ids), 500):
                replayed += await backend.replay_dead_letters(tenant, agent, ids[start : start + 500])
        _print(f"{replayed} delivered again")
        return 0

    _run(list_or_replay)


async def _dead_letters(backend: Backend, tenant: str, agent: str) -> AsyncIterator[DeadLetter]:
    after = 0
    while True:
        page = await backend.list_dead_letters(tenant, agent, after=after)
        for each in page.dead_letters:
            yield each
            after = each.delivery_id
        if not page.more:
            return


def _dead_letter_table(found: Iterable[DeadLetter], agent: str) -> Table:
    table = Table("id", "since", "attempts", "reason", "author", "text", title=f"dead letters of {agent}")
    for each in found:
        message = each.message
        table.add_row(
            str(each.delivery_id),
            each.given_up_at.ToJsonString(),
            str(each.attempts),
            Text(each.reason),
            _author(message),
            Text(builders.text_of(message)),
        )
    return table


@app.command()
def receipts(
    agent: Annotated[str, typer.Option(help="Agent.")],
    conversation: Annotated[str, typer.Option(help="person:<id> or group:<id>.")],
    tenant: Tenant = "demo",
    platform: Annotated[str, typer.Option(help="Platform.")] = "web",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    proxy: Proxy = False,
) -> None:
    """List up to which position each user of a conversation got it, and read it."""

    async def show() -> int:
        of = builders.address(tenant=tenant, agent=agent, platform=platform, conversation=conversation)
        table = Table("user", "delivered", "read", "changed", title=builders.address_name(of))
        async with Backend(router, **load_credentials(api_key, ca, tls, proxy)) as backend:
            after, more = "", True
            while more:
                page = await backend.list_receipts(of, after=after)
                more = page.more
                for each in page.receipts:
                    after = each.user
                    table.add_row(
                        each.user,
                        str(each.delivered.seq) if each.HasField("delivered") else "",
                        str(each.read.seq) if each.HasField("read") else "",
                        each.updated_at.ToJsonString(),
                    )
        Console().print(table)
        return 0

    _run(show)


def _time(message: Message) -> str:
    return message.created_at.ToJsonString() if message.HasField("created_at") else ""


def _author(message: Message) -> str:
    author = message.author
    return author.name or author.user or Role.Name(author.role).removeprefix("ROLE_").lower()


def _run(command: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Runs a command; an expected failure is one line on stderr and exit code 1."""
    try:
        code = asyncio.run(command())
    except (TrunklineError, ValueError, OSError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        code = 1
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)


_print = partial(Console().print, markup=False, highlight=False, soft_wrap=True)

main = app

if __name__ == "__main__":
    main()
