"""The log of a router's settings, as the router opens it."""

from __future__ import annotations

from trunkline_router.log.engines import open_database
from trunkline_router.log.interface import Log
from trunkline_router.settings import RouterSettings


async def open_log(settings: RouterSettings) -> Log:
    """Open the log that these settings select. Raises StartError."""
    return (await open_database(settings).acquire(lambda: None)).log
