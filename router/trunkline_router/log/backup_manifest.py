"""Manifest of a backup: the file `<backup>.json`, by which a restore recognises and verifies the backup."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """Describes one backup."""

    #: Of the backup's file.
    bytes: int
    sha256: str
    schema_version: int
    #: Unix time of the snapshot.
    created_ms: int
    tenants: int
    topics: int
    messages: int
    #: SHA-256 over the address, epoch, pruned seq and head of every topic, in order.
    heads_sha256: str

    def to_json(self) -> str:
        """Format the manifest."""
        return json.dumps(asdict(self), indent=2) + "\n"


def manifest_path(backup: Path) -> Path:
    """Return the path of a backup's manifest."""
    return backup.with_name(backup.name + ".json")


def load_manifest(backup: Path) -> BackupManifest | None:
    """Load a backup's manifest; None if there is none. Raises ValueError if it is no manifest."""
    path = manifest_path(backup)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return BackupManifest(**fields)
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a backup's manifest: {error}") from None


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
