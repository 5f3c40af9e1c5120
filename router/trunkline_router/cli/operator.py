"""Who calls TenantService from the command line, what the answers look like, and what went wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import grpc
import grpc.aio
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType
from trunkline.v1.tenant_pb2 import Tenant
from trunkline.v1.tenant_service_pb2 import GetTenantRequest
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub
from trunkline_runtime.refusals import details_of, read_status

from trunkline_router.operator_key import FILE

TIMEOUT_S = 30.0
MAX_MESSAGE_BYTES = 16 << 20

#: Off a terminal nothing is cut short to fit.
_PIPE_WIDTH = 240

_PANEL = "Router"

Q = TypeVar("Q")
A = TypeVar("A")


class CommandFailed(Exception):
    """A command cannot be done; the text is one line that says why."""


@dataclass(frozen=True)
class RouterTarget:
    """The options that every command has."""

    router: Annotated[
        str, typer.Option(envvar="TRUNKLINE_ROUTER", help="The router's address.", rich_help_panel=_PANEL)
    ] = "127.0.0.1:50051"
    key: Annotated[
        str,
        typer.Option(
            envvar="TRUNKLINE_OPERATOR_KEY",
            help=f"The operator's key, or a tenant's with ADMIN; else {FILE} in the data folder is read.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = ""
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="TRUNKLINE_CA",
            help="Certificate (PEM) of the authority; talks by TLS.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as HTTP has it, for scripts.", rich_help_panel=_PANEL)
    ] = False


class Operator:
    """Calls a router's TenantService with a key."""

    def __init__(self, channel: grpc.Channel, key: str, as_json: bool) -> None:
        # Its types are those of grpc.aio; a channel of the other kind needs no loop.
        self.tenants = TenantServiceStub(cast(Any, channel))
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._as_json = as_json
        self.console = console()
        #: For what is not the answer.
        self.aside = console(aside=True)

    def ask(
        self,
        rpc: grpc.aio.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        timeout_s: float | None = TIMEOUT_S,
    ) -> A:
        """The answer of an RPC of `tenants`; None is for those that take as long as they take."""
        answer: Any = rpc(request, timeout=timeout_s, metadata=self._metadata)
        return cast(A, answer)

    def tenant(self, name: str) -> Tenant:
        """A tenant as it is."""
        return self.ask(self.tenants.GetTenant, GetTenantRequest(tenant=name)).tenant

    def answer(self, content: object, shown: RenderableType | Callable[[], RenderableType]) -> None:
        """Show the answer: its content as JSON, or what is for people."""
        if self._as_json:
            # Not by rich, which would wrap it.
            print(json.dumps(_plain(content), indent=2))  # noqa: T201
            return
        readable = shown() if callable(shown) else shown
        # A token is one word, however long; only tables are fit to the terminal.
        self.console.print(readable, soft_wrap=isinstance(readable, str))

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """Shows on a terminal that something takes its time."""
        with self.aside.status(doing):
            yield


def console(aside: bool = False) -> Console:
    """Where people read: names and refusals are shown as they are, whatever they look like."""
    stream = sys.stderr if aside else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=aside, width=width, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(each if each.isprintable() else "�" for each in text)


@contextmanager
def connected(target: RouterTarget) -> Iterator[Operator]:
    """An operator for the time of one command. Raises CommandFailed where its calls do."""
    key = _key(target.key)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", 0),
    ]
    if target.ca is None:
        channel = grpc.insecure_channel(target.router, options)
    else:
        credentials = grpc.ssl_channel_credentials(_read(target.ca, "--ca"))
        channel = grpc.secure_channel(target.router, credentials, options)
    with channel:
        try:
            yield Operator(channel, key, target.json)
        except grpc.RpcError as error:
            raise CommandFailed(_sentence(error, target.router)) from None


def _key(given: str) -> str:
    path = Path(os.environ.get("TRUNKLINE_DATA_DIR") or "data") / FILE
    key = given
    if not key:
        try:
            key = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no key"
            raise CommandFailed(
                f"There is no operator's key: {path} cannot be read ({why}). Set TRUNKLINE_OPERATOR_KEY, or"
                " TRUNKLINE_DATA_DIR to the router's data folder."
            ) from None
    if not key or not key.isascii() or not key.isprintable():
        where = "What was given by --key or TRUNKLINE_OPERATOR_KEY" if given else f"What {path} holds"
        raise CommandFailed(f"{where} is no key")
    return key


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{option}: {path}: {error.strerror}") from None


def _sentence(error: grpc.RpcError, router: str) -> str:
    """What a failed call means, in one line."""
    text = " ".join(str(error.details()).split())
    metadata: Any = error.trailing_metadata()
    if reason := details_of(read_status(metadata)).reason:
        return f"{text} ({reason})"
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"No router can be reached at {router}: {text.rpartition('last error: ')[2]}. Is one running"
            " (trunkline-router serve)? --router or TRUNKLINE_ROUTER names another address."
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"The router at {router} gave no answer within {TIMEOUT_S:g} s; what was asked may be done."
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"What answers at {router} has no TenantService: is it a router of this version?"
    return f"{text} ({code.name})"


def _plain(content: object) -> Any:
    if isinstance(content, Message):
        return MessageToDict(content, always_print_fields_with_no_presence=True)
    if isinstance(content, list):
        return [_plain(each) for each in content]
    return content
