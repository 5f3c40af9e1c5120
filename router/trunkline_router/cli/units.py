"""Parses and formats durations and sizes."""

from __future__ import annotations

import re

import typer

_SECONDS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_BYTES = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "": 1}

FOREVER = "forever"


def parse_seconds(text: str, option: str) -> int:
    """Parse a duration such as `30d`, `12h` or a plain number of seconds. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,12})([wdhms]?)", text, re.ASCII)
    if not match:
        problem = f"{text!r} is not a duration such as 90s, 15m, 12h, 30d or 4w"
        raise typer.BadParameter(problem, param_hint=option)
    return int(match[1]) * _SECONDS[match[2] or "s"]


def parse_bytes(text: str, option: str) -> int:
    """Parse a size such as `64MiB` or a plain number of bytes. Raises BadParameter."""
    match = re.fullmatch(r"(\d{1,18})(GiB|MiB|KiB|)", text, re.ASCII)
    if not match:
        problem = f"{text!r} is not a size such as 4096, 512KiB or 64MiB"
        raise typer.BadParameter(problem, param_hint=option)
    return int(match[1]) * _BYTES[match[2]]


def format_seconds(value: int) -> str:
    """Format a duration as `parse_seconds` reads it; 0 is `forever`."""
    unit = next((unit for unit, size in _SECONDS.items() if unit != "w" and value % size == 0), "s")
    return f"{value // _SECONDS[unit]}{unit}" if value else FOREVER


def format_bytes(value: int) -> str:
    """Format a size as `parse_bytes` reads it."""
    unit = next(unit for unit, size in _BYTES.items() if value % size == 0) if value else ""
    return f"{value // _BYTES[unit]}{unit}"
