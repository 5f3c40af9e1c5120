"""File descriptors: their limit is raised at start, and running out of them is noticed."""

from __future__ import annotations

import errno
import os
import resource

import structlog

_log = structlog.get_logger()

#: Descriptors for everything but connections: listeners, log, event loop, gRPC.
RESERVED = 40
#: With no more than these left the process is short of descriptors; they are for the log and the link.
FEW = 8


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether an exception means that the process, or the machine, has no descriptor left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class DescriptorWatch:
    """Notices when the process runs out of file descriptors, and logs that once an episode.

    `check` must be called once a second; `note` counts each failure that is known.
    """

    def __init__(self) -> None:
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        #: Times that an operation failed, or a connection was refused, for want of a descriptor.
        self.failures = 0
        self.is_short = False

    def raise_limit(self, connections: int, setting: str) -> int:
        """Raise the soft limit so that `connections` fit, as far as the hard limit allows.

        Logs the change; if the limit is too low, warns and names the setting. Returns how many connections
        fit, at most `connections`.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = connections + RESERVED
        if soft < needed and soft != resource.RLIM_INFINITY:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            _log.info("the limit of file descriptors was raised", limit=soft, connections=connections)
        self.limit = soft
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return connections
        fitting = max(1, soft - RESERVED)
        _log.warning(
            "the limit of file descriptors is too low for all connections",
            limit=soft,
            connections=fitting,
            configured=connections,
            remedy=f"raise the hard limit (ulimit -Hn, LimitNOFILE=) to {needed}, or set {setting}={fitting}",
        )
        return fitting

    def is_low(self, descriptor: int) -> bool:
        """Whether a new descriptor shows that few are left: the kernel gives out the lowest free number."""
        return self.limit != resource.RLIM_INFINITY and descriptor >= self.limit - FEW

    def note(self) -> None:
        """Count a failure for want of a descriptor; the first one of an episode is logged."""
        self.failures += 1
        if not self.is_short:
            self.is_short = True
            _log.error(
                "out of file descriptors; new connections are refused",
                limit=self.limit,
                remedy="raise ulimit -n, or allow fewer connections",
            )

    def check(self) -> None:
        """Begin or end an episode."""
        try:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if is_exhaustion(error):
                self.note()
            return
        os.close(descriptor)
        if self.is_low(descriptor):
            self.note()
        elif self.is_short:
            self.is_short = False
            _log.info("file descriptors are free again", failures=self.failures)


#: The one of this process.
watch = DescriptorWatch()
