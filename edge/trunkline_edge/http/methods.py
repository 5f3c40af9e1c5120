"""The methods of a path, as the header `Allow` lists them."""

from __future__ import annotations

from collections.abc import Iterable


def allowed_methods(methods: Iterable[str]) -> str:
    """The methods, with OPTIONS, and with HEAD beside GET."""
    return ", ".join(sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])}))
