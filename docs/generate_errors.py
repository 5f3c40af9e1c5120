"""Write docs/errors.md from the error catalogue: `python docs/generate_errors.py`."""

from __future__ import annotations

from pathlib import Path

import grpc
from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Entry

PAGE = Path(__file__).with_name("errors.md")

STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

#: First and last close code of each range, and its instruction to the client.
RANGES = [
    (1000, 1011, "WebSocket's own"),
    (1012, 1013, "Reconnect: restart and overload"),
    (4000, 4499, "Reconnect and resume"),
    (4500, 4999, "Do not reconnect"),
]

HEAD = """\
# Errors and closes

<!-- Generated from protos/trunkline/v1/error.proto by docs/generate_errors.py. -->

All refusals, errors and closes. The code is the same on WebSockets (`error.code`, `closing.reason`), in gRPC
(`ErrorInfo.reason`) and in logs. `{…}` is a placeholder that each occurrence fills in.

A code that is not listed is newer than this page: handle it by its `retryable`.
"""

ERRORS = """\
## All entries

| code | text | gRPC | HTTP | close code | retryable | retry after |
|---|---|---|---|---|---|---|
"""

CLOSES = """\
## Closes

A `closing` frame with the code and the reason precedes each close.
"""


def page() -> str:
    """Return the whole page."""
    entries = catalogue.ENTRIES.values()
    return "\n".join([HEAD, ERRORS + "".join(map(_row, entries)), CLOSES, *_ranges(list(entries))])


def _row(entry: Entry) -> str:
    cells = [
        f"`{entry.code}`",
        entry.text,
        STATUS_NAMES[entry.grpc_status] if entry.grpc_status else "",
        str(entry.http_status or ""),
        str(entry.close_code or ""),
        "yes" if entry.retryable else "no",
        f"{entry.retry_after_ms} ms" if entry.retry_after_ms else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def _ranges(entries: list[Entry]) -> list[str]:
    sections = []
    for first, last, title in RANGES:
        closes = sorted((e for e in entries if first <= e.close_code <= last), key=lambda e: e.close_code)
        rows = "".join(f"| {e.close_code} | `{e.code}` | {e.text} |\n" for e in closes)
        sections.append(
            f"### {first} to {last}: {title}\n\n| close code | reason | text |\n|---|---|---|\n{rows}"
        )
    return sections


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
