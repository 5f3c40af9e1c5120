"""The operator's key: whoever shows it may do everything that backends and operators may."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from trunkline_runtime.process import StartError

from trunkline_router.settings import RouterSettings

#: In the data folder.
FILE = "operator.key"

MIN_CHARS, MAX_CHARS = 16, 1024


def operator_key(settings: RouterSettings) -> str:
    """The key that was set, else the one in the data folder, which is made if it is not there.

    Raises StartError, which never shows a key.
    """
    path = settings.data_dir / FILE
    if given := settings.operator_key.get_secret_value():
        return _checked(given, "TRUNKLINE_OPERATOR_KEY")
    try:
        if not path.exists():
            _make(path)
        return _checked(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, ValueError) as error:
        problem = f"the operator's key in {path} cannot be read or made: {error}"
        raise StartError(f"{problem}. TRUNKLINE_OPERATOR_KEY sets one that is not in a file.") from error


def _checked(key: str, where: str) -> str:
    if MIN_CHARS <= len(key) <= MAX_CHARS and key.isascii() and key.isprintable() and " " not in key:
        return key
    wanted = f"{MIN_CHARS} to {MAX_CHARS} printable ASCII characters without blanks"
    raise StartError(f"{where} holds no key of an operator, which has {wanted}.")


def _make(path: Path) -> None:
    """Make a key. Whenever this is interrupted, what is at the path is a whole key or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(made, "x", encoding="ascii", opener=_private) as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            # Unlike a rename it leaves the key of a router that was quicker.
            path.hardlink_to(made)
    finally:
        made.unlink(missing_ok=True)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, mode=0o600)
