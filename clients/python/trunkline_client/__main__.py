"""`python -m trunkline_client`: a chat with an agent, and a look at what a router knows."""

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
from trunkline_client.channel import load_credentials
from trunkline_client.chat import chat as converse
from trunkline_client.client import Client
from trunkline_client.edge_socket import ClientSettings
from trunkline_client.errors import TrunklineError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__.partition(": ")[2],
)

Tenant = Annotated[str, typer.Option(help="The tenant.")]
Agent = Annotated[str, typer.Option(help="The agent; for everybody of the tenant if empty.")]
Platform = Annotated[str, typer.Option(help="The platform; all of the agent's if empty.")]
Talk = Annotated[str, typer.Option(help="person:<id> or group:<id>.")]
User = Annotated[str, typer.Option(help="The user, in place of agent, platform and conversation.")]
Router = Annotated[str, typer.Option(envvar="TRUNKLINE_ROUTER", help="The router's gRPC address.")]
Key = Annotated[str, typer.Option("--api-key", envvar="TRUNKLINE_API_KEY", help="A key of the tenant.")]
Ca = Annotated[
    str, typer.Option(envvar="TRUNKLINE_CA", help="PEM file of the authorities that are trusted; for TLS.")
]
Tls = Annotated[bool, typer.Option("--tls", envvar="TRUNKLINE_TLS", help="TLS, with public authorities.")]


@app.command()
def chat(
    url: Annotated[
        str, typer.Option("--url", "--edge", envvar="TRUNKLINE_URL", help="The edge.")
    ] = "ws://127.0.0.1:8080",
    tenant: Tenant = "demo",
    agent: Annotated[str, typer.Option(help="The agent.")] = "guide",
    platform: Annotated[str, typer.Option(help="The platform.")] = "web",
    conversation: Annotated[str, typer.Option(help="person:<id> or group:<id>; yours if empty.")] = "",
    user: Annotated[str, typer.Option(help="You; your login name if empty.")] = "",
    token: Annotated[str, typer.Option(envvar="TRUNKLINE_TOKEN", help="Proof of who you are.")] = "",
    ca: Ca = "",
    once: Annotated[str, typer.Option(help="Say this, show the reply and end.")] = "",
    wait_s: Annotated[float, typer.Option(help="How long to wait for more, off a terminal.")] = 10.0,
) -> None:
    """Talks with an agent; lines come from standard input, which may be a pipe."""
    you = user or getpass.getuser()

    async def talk() -> int:
        client = Client(
            url,
            tenant=tenant,
            agent=agent,
            platform=platform,
            conversation=conversation or f"person:{you}",
            user=you,
            token=token,
            settings=ClientSettings(open_timeout_s=0, ssl=create_default_context(cafile=ca) if ca else None),
        )
        return await converse(client, Console(), you, agent, once, wait_s)

    _run(talk)


@app.command()
def broadcast(
    text: Annotated[str, typer.Argument(help="What to say.")],
    tenant: Tenant = "demo",
    agent: Agent = "",
    platform: Platform = "",
    conversation: Talk = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    require_connection: Annotated[bool, typer.Option(help="Refuse where nobody is connected.")] = False,
    ephemeral: Annotated[bool, typer.Option(help="Do not keep it.")] = False,
) -> None:
    """Says something to an address, as a backend."""

    async def send() -> int:
        to = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        async with Backend(router, **load_credentials(api_key, ca, tls)) as backend:
            taken = await backend.broadcast(
                to, text, require_connection=require_connection, ephemeral=ephemeral
            )
        kept = f"position {taken.position.seq}" if taken.HasField("position") else "not kept"
        _print(f"{taken.message_id}  {kept}, {taken.connections} connected")
        return 0

    _run(send)


@app.command()
def history(
    tenant: Tenant = "demo",
    agent: Agent = "",
    platform: Platform = "",
    conversation: Talk = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many messages.")] = 50,
) -> None:
    """Shows the newest messages of an address."""

    async def show() -> int:
        of = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        async with Backend(router, **load_credentials(api_key, ca, tls)) as backend:
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
    conversation: Talk = "",
    user: User = "",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
) -> None:
    """Lists who is connected."""

    async def show() -> int:
        of = builders.address(
            tenant=tenant, agent=agent, platform=platform, conversation=conversation, user=user
        )
        table = Table("connection", "address", "user", "protocol", "since", "edge")
        async with Backend(router, **load_credentials(api_key, ca, tls)) as backend:
            async for page in backend.connections(of):
                for each in page:
                    since = each.connected_at.ToJsonString()
                    name = builders.address_name(each.address)
                    table.add_row(each.connection_id, name, each.user, each.protocol, since, each.edge_id)
        Console().print(table)
        return 0

    _run(show)


@app.command()
def deadletters(
    agent: Annotated[str, typer.Option(help="The agent.")],
    tenant: Tenant = "demo",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
    replay: Annotated[list[int] | None, typer.Option(help="Deliver this one again; may be repeated.")] = None,
    replay_all: Annotated[bool, typer.Option(help="Deliver all of them again.")] = False,
) -> None:
    """Lists the messages that an agent gave up, or delivers them again."""

    async def deal_with() -> int:
        async with Backend(router, **load_credentials(api_key, ca, tls)) as backend:
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

    _run(deal_with)


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
    table = Table("id", "given up", "attempts", "reason", "author", "text", title=f"given up by {agent}")
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
    agent: Annotated[str, typer.Option(help="The agent.")],
    conversation: Annotated[str, typer.Option(help="person:<id> or group:<id>.")],
    tenant: Tenant = "demo",
    platform: Annotated[str, typer.Option(help="The platform.")] = "web",
    router: Router = "127.0.0.1:50051",
    api_key: Key = "",
    ca: Ca = "",
    tls: Tls = False,
) -> None:
    """Shows how far each user of a conversation has been given it, and has read it."""

    async def show() -> int:
        of = builders.address(tenant=tenant, agent=agent, platform=platform, conversation=conversation)
        table = Table("user", "delivered", "read", "changed", title=builders.address_name(of))
        async with Backend(router, **load_credentials(api_key, ca, tls)) as backend:
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
    """Runs a command; what can be foreseen to go wrong is one line on stderr and exit code 1."""
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
