"""The interface of every store of uploads, and what each operation guarantees."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Upload(NamedTuple):
    """Content that a client uploaded, with its type."""

    content: bytes
    mime_type: str


class Stored(NamedTuple):
    """The result of storing an upload."""

    #: 48 hexadecimal digits, which nobody can guess.
    key: str
    expires_at_s: float


class UploadLimits(NamedTuple):
    """Bounds of the uploads that one tenant stores at a time."""

    files: int
    bytes: int


class MediaStore(Protocol):
    """Uploads by tenant and key, each for a limited time.

    Coroutines may be called concurrently from one event loop. A failing disk raises LogUnavailable.
    """

    async def put(self, tenant: str, user: str, upload: Upload, limits: UploadLimits, now_s: float) -> Stored:
        """Store an upload; it is on disk on return. `user` may be empty.

        Raises Refused MEDIA_FULL if the tenant would exceed a limit, also while other uploads of it are being
        stored. A cancelled call may or may not store the upload.
        """

    async def get(self, tenant: str, key: str, now_s: float) -> Upload | None:
        """Read an upload; None if the tenant has none of this key, which may be any text, or no longer.

        Raises LogDamaged if the content is not as it was written.
        """

    async def sweep(self, now_s: float) -> int:
        """Delete a bounded number of expired uploads. Returns the number; call it every second."""

    async def erase_user(self, tenant: str, user: str) -> int:
        """Delete the uploads of a user of a tenant. Returns the number."""

    async def erase_tenant(self, tenant: str) -> int:
        """Delete all uploads of a tenant. Returns the number."""

    def close(self) -> None:
        """Finish running operations."""
