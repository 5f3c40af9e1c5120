"""Stores in the data folder to which installation it belongs: no router joins another one by mistake."""

from __future__ import annotations

from pathlib import Path

from trunkline_runtime.private_files import create_private_folder, open_private
from trunkline_runtime.process import StartError

#: Name of the file by which a data folder remembers the database that it was used with.
INSTALLATION_FILE = "installation"


def check_installation(data_dir: Path, installation_id: str) -> None:
    """Compare a data folder with the database; a folder that belongs to none yet is adopted.

    Raises StartError if the folder belongs to another installation, or cannot be used.
    """
    path = data_dir / INSTALLATION_FILE
    try:
        create_private_folder(data_dir)
        if not path.exists():
            with open(path, "x", opener=open_private) as file:
                file.write(f"{installation_id}\n")
        owner = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot use the data folder {data_dir}: {error}") from error
    if owner != installation_id:
        raise StartError(
            f"the database belongs to the installation {installation_id}, the data folder {data_dir} to"
            f" {owner}. Correct TRUNKLINE_DATABASE_URL, or set TRUNKLINE_DATA_DIR to a new folder; if this"
            f" folder shall join this database, remove {path}"
        )
