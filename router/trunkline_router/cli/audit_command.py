"""The command that lists the audit trail."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from trunkline.v1.audit_service_pb2 import AuditEntry, ListAuditEntriesRequest

from trunkline_router.cli.commands import command, group
from trunkline_router.cli.formatting import audit_table
from trunkline_router.cli.operator_client import OperatorClient
from trunkline_router.cli.units import parse_seconds

MAX_PAGE = 1000

app = group("List who changed what.")


@command(
    app,
    "audit",
    "trunkline-router audit",
    "trunkline-router audit --tenant acme --action RevokeTokens --since 7d --json",
)
def audit(
    client: OperatorClient,
    tenant: Annotated[str, typer.Option(help="Only entries of this tenant.")] = "",
    action: Annotated[str, typer.Option(help="Only this action, such as RevokeTokens.")] = "",
    since: Annotated[str, typer.Option(help="Only entries this old at most, such as 12h or 7d.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Entries at most, the newest; 0 for all.")] = 100,
) -> None:
    """List administrative calls, changes of the tenants file and refused attempts, newest first.

    --json prints one entry a line; `trunkline-router restore --audit` takes a file of these.
    """
    request = ListAuditEntriesRequest(tenant=tenant, action=action)
    if since:
        request.since.FromDatetime(datetime.now(UTC) - timedelta(seconds=parse_seconds(since, "--since")))
    found: list[AuditEntry] = []
    while not limit or len(found) < limit:
        request.page_size = min(limit - len(found), MAX_PAGE) if limit else MAX_PAGE
        page = client.call(client.audit.ListAuditEntries, request)
        found += page.entries
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    lines = [json.dumps(_to_dict(entry), ensure_ascii=False) for entry in found]
    client.print_lines(lines, lambda: audit_table(found) if found else "There are no entries.")


def _to_dict(entry: AuditEntry) -> dict[str, object]:
    """Return all fields of an entry, its JSON texts as objects, and its time also in milliseconds."""
    values: dict[str, object] = MessageToDict(entry, always_print_fields_with_no_presence=True)
    values["at_ms"] = entry.at.ToMilliseconds()
    for name in ("before", "after"):
        text = getattr(entry, name)
        values[name] = json.loads(text) if text else None
    return values
