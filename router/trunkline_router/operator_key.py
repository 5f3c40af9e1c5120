"""The operator's key: grants everything that backends and operators may do."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline_runtime.private_files import create_private_folder, narrow, open_private
from trunkline_runtime.process import StartError

if TYPE_CHECKING:
    # The command line needs the file's name only, and is quick without the settings.
    from trunkline_router.settings import RouterSettings

#: Name of the key file in the data folder.
FILE = "operator.key"

MIN_CHARS, MAX_CHARS = 16, 1024


def operator_key(settings: RouterSettings) -> str:
    """Return the configured key, else the one in the data folder, which is created if missing.

    Routers that share a database must be given one.

    Raises StartError, whose text never contains a key.
    """
    path = settings.data_dir / FILE
    if key := settings.operator_key.get_secret_value():
        return _validated(key, "TRUNKLINE_OPERATOR_KEY")
    if settings.database_url.get_secret_value():
        raise StartError(
            "TRUNKLINE_DATABASE_URL requires TRUNKLINE_OPERATOR_KEY: routers that share a log need one key."
        )
    try:
        if not path.exists():
            _create(path)
        narrow((path,))
        return _validated(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, ValueError) as error:
        problem = f"cannot read or create the operator key in {path}: {error}"
        raise StartError(f"{problem}. Set TRUNKLINE_OPERATOR_KEY to use a key without a file.") from error


def _validated(key: str, source: str) -> str:
    if MIN_CHARS <= len(key) <= MAX_CHARS and key.isascii() and key.isprintable() and " " not in key:
        return key
    valid = f"{MIN_CHARS} to {MAX_CHARS} printable ASCII characters without spaces"
    raise StartError(f"{source} is not a valid operator key: it must have {valid}.")


def _create(path: Path) -> None:
    """Create a key file. If interrupted, the path holds a whole key or nothing."""
    create_private_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "x", encoding="ascii", opener=open_private) as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            # Unlike a rename, a link keeps the key of a router that was faster.
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
