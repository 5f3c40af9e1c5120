"""Rate limits and token buckets of edge and router."""

from __future__ import annotations

from math import inf

#: Least depth of a byte bucket, so that the largest message always fits.
LARGEST_MESSAGE_BYTES = 12 << 20

#: Shorter waits are rounding errors of summed times.
_ROUNDING_S = 1e-6


class RateLimit:
    """Messages and bytes per second; 0 for unlimited. A full bucket holds `depth_s` of the rate.

    It holds at least one message and LARGEST_MESSAGE_BYTES. Callers may share a bucket with limits of
    different depths: the shallower ones leave the difference to the others. `unit` names the messages.
    """

    __slots__ = (
        "byte_s",
        "bytes_depth_s",
        "bytes_per_s",
        "message_s",
        "messages_depth_s",
        "messages_per_s",
        "unit",
    )

    def __init__(
        self,
        messages_per_s: float = 0,
        bytes_per_s: float = 0,
        *,
        depth_s: float = 1.0,
        unit: str = "messages",
    ) -> None:
        self.messages_per_s = messages_per_s
        self.bytes_per_s = bytes_per_s
        self.unit = unit
        #: Refill times: of one message or byte, and of a full bucket.
        self.message_s = 1 / messages_per_s if messages_per_s else 0.0
        self.byte_s = 1 / bytes_per_s if bytes_per_s else 0.0
        self.messages_depth_s = max(depth_s, self.message_s) if messages_per_s else inf
        self.bytes_depth_s = max(depth_s, LARGEST_MESSAGE_BYTES * self.byte_s) if bytes_per_s else inf

    def clamp(self, size: float) -> float:
        """The size, or a full bucket if that is less, so that a larger message can pass a full bucket."""
        return min(size, self.bytes_depth_s * self.bytes_per_s) if self.bytes_per_s else size

    def clamp_messages(self, messages: float) -> float:
        """The messages, or a full bucket if that is less: the most that one frame is charged."""
        return min(messages, self.messages_depth_s * self.messages_per_s) if self.messages_per_s else messages

    @property
    def sentence(self) -> str:
        """The limit in words, such as `10 messages a second`."""
        limits = []
        if self.messages_per_s:
            limits.append(f"{self.messages_per_s:.0f} {self.unit}")
        if self.bytes_per_s:
            limits.append(f"{self.bytes_per_s:.0f} bytes")
        return f"{' or '.join(limits)} a second"

    def __repr__(self) -> str:
        return f"<RateLimit {self.sentence}>"


class TokenBucket:
    """Token buckets of one source, for messages and for bytes.

    Stores only the times at which the buckets are full again: an idle source needs no refill, and each call
    may use another rate.
    """

    __slots__ = ("_bytes_full_at", "_messages_full_at")

    def __init__(self) -> None:
        self._messages_full_at = 0.0
        self._bytes_full_at = 0.0

    def take(self, rate: RateLimit, size: float, now: float) -> float:
        """Take one message of `size` bytes if the buckets hold it, and return 0.

        Otherwise takes nothing, and returns the seconds until it would fit.
        """
        # Inlined, because this runs for every frame and a call would double its cost.
        messages_full_at, bytes_full_at = self._messages_full_at, self._bytes_full_at
        if messages_full_at < now:
            messages_full_at = now
        if bytes_full_at < now:
            bytes_full_at = now
        messages_full_at += rate.message_s
        bytes_full_at += size * rate.byte_s
        wait_s = messages_full_at - now - rate.messages_depth_s
        bytes_wait_s = bytes_full_at - now - rate.bytes_depth_s
        if bytes_wait_s > wait_s:
            wait_s = bytes_wait_s
        if wait_s > _ROUNDING_S:
            return wait_s
        self._messages_full_at = messages_full_at
        self._bytes_full_at = bytes_full_at
        return 0.0

    def refund(self, rate: RateLimit, size: int) -> None:
        """Return the message taken last, which was not sent."""
        self._messages_full_at -= rate.message_s
        self._bytes_full_at -= size * rate.byte_s

    def charge(self, rate: RateLimit, messages: float, size: float, now: float) -> float:
        """Take messages and bytes unconditionally, into debt if the buckets hold less.

        Returns the seconds for which the source must pause; 0 if it may continue.
        """
        wait_s = self.wait_s(rate, messages, size, now)
        self._messages_full_at = max(self._messages_full_at, now) + messages * rate.message_s
        self._bytes_full_at = max(self._bytes_full_at, now) + size * rate.byte_s
        return wait_s

    def wait_s(self, rate: RateLimit, messages: float, size: float, now: float) -> float:
        """The seconds until the buckets hold this many messages and bytes."""
        wait_s = max(
            max(self._messages_full_at - now, 0.0) + messages * rate.message_s - rate.messages_depth_s,
            max(self._bytes_full_at - now, 0.0) + size * rate.byte_s - rate.bytes_depth_s,
        )
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def __repr__(self) -> str:
        return f"<TokenBucket full at {self._messages_full_at:.3f}, bytes {self._bytes_full_at:.3f}>"
