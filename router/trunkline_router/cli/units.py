"""Spans of time and sizes, as people write and read them."""

from __future__ import annotations

import re

import typer

_SECONDS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_BYTES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "": 1}

FOREVER = "forever"


def seconds(text: str, option: str) -> int:
    """How long `30d`, `12h` or a bare number of seconds is. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,12})([wdhms]?)", text, re.ASCII)
    if not match:
        raise typer.BadParameter(f"{text!r} is no time such as 90s, 15m, 12h, 30d or 4w", param_hint=option)
    return int(match[1]) * _SECONDS[match[2] or "s"]


def bytes_of(text: str, option: str) -> int:
    """How many bytes `64MiB` or a bare number are. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,18})(GiB|MiB|KiB|)", text, re.ASCII)
    if not match:
        raise typer.BadParameter(f"{text!r} is no size such as 4096, 512KiB or 64MiB", param_hint=option)
    return int(match[1]) * _BYTES[match[2]]


def shown_seconds(value: int) -> str:
    """As `seconds` takes it."""
    unit = next((unit for unit, size in _SECONDS.items() if unit != "w" and value % size == 0), "s")
    return f"{value // _SECONDS[unit]}{unit}" if value else FOREVER


def shown_bytes(value: int) -> str:
    """As `bytes_of` takes it."""
    unit = next(unit for unit, size in _BYTES.items() if value % size == 0) if value else ""
    return f"{value // _BYTES[unit]}{unit}"
