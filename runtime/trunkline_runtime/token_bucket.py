"""How fast somebody may send: the token buckets of edge and router."""

from __future__ import annotations

from math import inf

#: Room that a bucket of bytes has at least: whoever may send a message may send the largest there is.
LARGEST_MESSAGE_BYTES = 12 << 20

#: Less is what sums of floating-point times are wrong by.
_ROUNDING_S = 1e-6


class RateLimit:
    """Messages and bytes a second; 0 for any number. A bucket holds what comes in `depth_s`.

    It holds one message, and LARGEST_MESSAGE_BYTES, at least. Of those who draw from one meter, those with a
    shallower bucket leave the rest to the others. `of` is what the messages are called.
    """

    __slots__ = (
        "byte_s",
        "bytes_depth_s",
        "bytes_per_s",
        "message_s",
        "messages_depth_s",
        "messages_per_s",
        "of",
    )

    def __init__(
        self, messages_per_s: float = 0, bytes_per_s: float = 0, *, depth_s: float = 1.0, of: str = "messages"
    ) -> None:
        self.messages_per_s = messages_per_s
        self.bytes_per_s = bytes_per_s
        self.of = of
        #: How long it takes for one to come, and for a whole bucket.
        self.message_s = 1 / messages_per_s if messages_per_s else 0.0
        self.byte_s = 1 / bytes_per_s if bytes_per_s else 0.0
        self.messages_depth_s = max(depth_s, self.message_s) if messages_per_s else inf
        self.bytes_depth_s = max(depth_s, LARGEST_MESSAGE_BYTES * self.byte_s) if bytes_per_s else inf

    def fitting(self, size: float) -> float:
        """As many of so many bytes as a full bucket holds: whatever is larger passes where it is full."""
        return min(size, self.bytes_depth_s * self.bytes_per_s) if self.bytes_per_s else size

    @property
    def sentence(self) -> str:
        """In words."""
        limits = []
        if self.messages_per_s:
            limits.append(f"{self.messages_per_s:.0f} {self.of}")
        if self.bytes_per_s:
            limits.append(f"{self.bytes_per_s:.0f} bytes")
        return f"{' or '.join(limits)} a second"

    def __repr__(self) -> str:
        return f"<Rate of {self.sentence}>"


class TokenBucket:
    """What one source has sent lately, against a rate: two token buckets.

    Kept are only the times at which the buckets will be full again, so a source that rests costs nothing, and
    the rate may be another one each time.
    """

    __slots__ = ("_bytes_full_at", "_messages_full_at")

    def __init__(self) -> None:
        self._messages_full_at = 0.0
        self._bytes_full_at = 0.0

    def take(self, rate: RateLimit, size: float, now: float) -> float:
        """Take one message of so many bytes out of the buckets, if it is in them.

        Returns 0 then, and otherwise after how many seconds to try again; nothing is taken.
        """
        # Asked for each frame: written out, as a call costs as much as all of it.
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

    def give_back(self, rate: RateLimit, size: int) -> None:
        """The message that was taken last was not sent."""
        self._messages_full_at -= rate.message_s
        self._bytes_full_at -= size * rate.byte_s

    def charge(self, rate: RateLimit, messages: int, size: float, now: float) -> float:
        """Take so many messages and bytes in all, also what is not in the buckets.

        Returns for how many seconds the source is to send nothing more; 0 where it may go on.
        """
        wait_s = self.wait_s(rate, messages, size, now)
        self._messages_full_at = max(self._messages_full_at, now) + messages * rate.message_s
        self._bytes_full_at = max(self._bytes_full_at, now) + size * rate.byte_s
        return wait_s

    def wait_s(self, rate: RateLimit, messages: int, size: float, now: float) -> float:
        """After how many seconds so many messages and bytes in all will be in the buckets."""
        wait_s = max(
            max(self._messages_full_at - now, 0.0) + messages * rate.message_s - rate.messages_depth_s,
            max(self._bytes_full_at - now, 0.0) + size * rate.byte_s - rate.bytes_depth_s,
        )
        return wait_s if wait_s > _ROUNDING_S else 0.0

    def __repr__(self) -> str:
        return f"<TokenBucket full at {self._messages_full_at:.3f}, bytes {self._bytes_full_at:.3f}>"
