"""Calls TenantService for a command, prints the result and explains failures."""

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
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from rich.console import Console, RenderableType
from trunkline.v1.audit_service_pb2_grpc import AuditServiceStub
from trunkline.v1.tenant_pb2 import Tenant
from trunkline.v1.tenant_service_pb2 import GetTenantRequest
from trunkline.v1.tenant_service_pb2_grpc import TenantServiceStub
from trunkline_runtime import http_proxy
from trunkline_runtime.refusals import details_of, read_status

from trunkline_router.operator_key import FILE

TIMEOUT_S = 30.0
#: Of the question whether a router owns the log.
PROBE_TIMEOUT_S = 5.0
MAX_MESSAGE_BYTES = 16 << 20

#: Width without a terminal, so that tables are not cut.
_PIPE_WIDTH = 240

_PANEL = "Router"

#: A router serves this while it owns the log.
_SERVICE = "trunkline.v1.TenantService"

Q = TypeVar("Q")
A = TypeVar("A")


class CommandFailed(Exception):
    """A command failed; the text is one line that says why."""


@dataclass(frozen=True)
class RouterTarget:
    """Options of every command: the router, and the key to call it with."""

    router: Annotated[
        str,
        typer.Option(
            envvar="TRUNKLINE_ROUTER",
            help="Address of the router; several that share one database are separated by commas.",
            rich_help_panel=_PANEL,
        ),
    ] = "127.0.0.1:50051"
    key: Annotated[
        str,
        typer.Option(
            envvar="TRUNKLINE_OPERATOR_KEY",
            help="Operator key, or a tenant's API key with scope admin. By default the key in the file"
            f" {FILE} of the data folder.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = ""
    ca: Annotated[
        Path | None,
        typer.Option(
            envvar="TRUNKLINE_CA",
            help="CA certificate (PEM) of the router. Connects by TLS.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    proxy: Annotated[
        bool,
        typer.Option(
            envvar="TRUNKLINE_ROUTER_PROXY",
            help="Connect through the proxy in grpc_proxy, https_proxy or http_proxy.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, in the contract's HTTP form.", rich_help_panel=_PANEL),
    ] = False


class OperatorClient:
    """Calls a router's TenantService and AuditService with a key, and prints results."""

    def __init__(self, channel: grpc.Channel, key: str, as_json: bool) -> None:
        # The stub is typed for grpc.aio; a blocking channel needs no event loop.
        self.tenants = TenantServiceStub(cast(Any, channel))
        self.audit = AuditServiceStub(cast(Any, channel))
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._as_json = as_json
        self._stdout = make_console()
        #: For everything that is not the result.
        self.stderr = make_console(stderr=True)

    def call(
        self,
        rpc: grpc.aio.UnaryUnaryMultiCallable[Q, A],
        request: Q,
        timeout_s: float | None = TIMEOUT_S,
    ) -> A:
        """Call an RPC of `tenants` or `audit` and return its response; without a timeout for None."""
        response: Any = rpc(request, timeout=timeout_s, metadata=self._metadata)
        return cast(A, response)

    def tenant(self, name: str) -> Tenant:
        """Get a tenant."""
        return self.call(self.tenants.GetTenant, GetTenantRequest(tenant=name)).tenant

    def print_result(self, content: object, readable: RenderableType | Callable[[], RenderableType]) -> None:
        """Print the result: `content` as JSON with --json, else the readable form."""
        if self._as_json:
            # Not by rich, which would wrap it.
            print(json.dumps(_plain(content), indent=2))  # noqa: T201
            return
        rendered = readable() if callable(readable) else readable
        # Text is never wrapped, since a token is one word of any length; tables fit the terminal.
        self._stdout.print(rendered, soft_wrap=isinstance(rendered, str))

    def print_lines(self, lines: list[str], readable: Callable[[], RenderableType]) -> None:
        """Print the result: one line of JSON for each item with --json, else the readable form."""
        if self._as_json:
            for line in lines:
                print(line)  # noqa: T201
            return
        self.print_result(None, readable)

    @contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Show on a terminal that a long operation is running."""
        with self.stderr.status(text):
            yield


def make_console(stderr: bool = False) -> Console:
    """Make a console that prints names and texts literally, whatever they contain."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Replace characters that could control a terminal."""
    return "".join(each if each.isprintable() else "�" for each in text)


@contextmanager
def connect(target: RouterTarget) -> Iterator[OperatorClient]:
    """Open a client for one command. A failed call raises CommandFailed."""
    key = _key(target.key)
    open_channel = _channels(target)
    router = _find_owner(target.router, open_channel)
    with open_channel(router) as channel:
        try:
            yield OperatorClient(channel, key, target.json)
        except grpc.RpcError as error:
            raise CommandFailed(_explain(error, router, target.proxy)) from None


def _channels(target: RouterTarget) -> Callable[[str], grpc.Channel]:
    """Return a function that opens a channel to a router. Raises CommandFailed if a file cannot be read."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        http_proxy.channel_option(target.proxy),
    ]
    if target.ca is None:
        return lambda router: grpc.insecure_channel(router, options)
    credentials = grpc.ssl_channel_credentials(_read(target.ca, "--ca"))
    return lambda router: grpc.secure_channel(router, credentials, options)


def _find_owner(setting: str, open_channel: Callable[[str], grpc.Channel]) -> str:
    """The router to call: of several the one that owns the log. Raises CommandFailed if none does."""
    if "," not in setting:
        return setting
    # Costs more time than the rest of a command.
    from trunkline_runtime.router_addresses import RouterAddresses

    try:
        routers = RouterAddresses(setting)
    except ValueError as error:
        raise CommandFailed(f"--router {error}") from None
    problems = []
    for router in routers:
        with open_channel(router) as channel:
            stub: Any = HealthStub(channel)
            try:
                answer = stub.Check(HealthCheckRequest(service=_SERVICE), timeout=PROBE_TIMEOUT_S)
            except grpc.RpcError as error:
                problems.append(f"{router}: {_one_line(error)}")
                continue
        if answer.status == HealthCheckResponse.SERVING:
            return router
        problems.append(f"{router}: it is a standby, or its database is away")
    raise CommandFailed(f"No router owns the log; try again. {'; '.join(problems)}")


def _key(option: str) -> str:
    """The key given as an option, else the one in the data folder. Raises CommandFailed."""
    path = Path(os.environ.get("TRUNKLINE_DATA_DIR") or "data") / FILE
    key = option
    if not key:
        try:
            key = path.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a key"
            raise CommandFailed(
                f"No operator key: cannot read {path} ({why}). Set TRUNKLINE_OPERATOR_KEY, or set"
                " TRUNKLINE_DATA_DIR to the router's data folder."
            ) from None
    if not key or not key.isascii() or not key.isprintable():
        source = "The value of --key or TRUNKLINE_OPERATOR_KEY" if option else f"The content of {path}"
        raise CommandFailed(f"{source} is not a key")
    return key


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{option}: {path}: {error.strerror}") from None


def _one_line(error: grpc.RpcError) -> str:
    """The text of a failed call, without gRPC's list of attempts."""
    return " ".join(str(error.details()).split()).rpartition("last error: ")[2]


def _explain(error: grpc.RpcError, router: str, use_proxy: bool) -> str:
    """Describe a failed call in one line."""
    text = " ".join(str(error.details()).split())
    metadata: Any = error.trailing_metadata()
    reason = details_of(read_status(metadata)).reason
    if reason:
        return f"{text} ({reason})"
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return (
            f"Cannot reach a router at {router}{http_proxy.describe(use_proxy)}:"
            f" {_one_line(error)}. Is it running"
            " (trunkline-router serve)? Set --router or TRUNKLINE_ROUTER to use another address."
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"The router at {router} did not respond within {TIMEOUT_S:g} s; the change may have been made."
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return f"The server at {router} has no TenantService. Is it a router of this version?"
    return f"{text} ({code.name})"


def _plain(content: object) -> Any:
    if isinstance(content, Message):
        return MessageToDict(content, always_print_fields_with_no_presence=True)
    if isinstance(content, list):
        return [_plain(each) for each in content]
    return content
