"""The exception in a group that decides how a handler's delivery is settled. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trunkline_client.errors import Fenced, ReplyCancelled
from trunkline_client.settlement import is_failure


def deciding_error(error: BaseException) -> BaseException:
    """The exception of a group that decides, such as a TaskGroup raises; any other exception itself.

    Fenced decides first, then ReplyCancelled: what fails beside them fails because of them. Then come
    failures, and after them Reject, RetryLater and AlreadyAnswered in the order of the group.
    """
    leaves = list(_leaves(error))
    for matches in (_is_fenced, _is_cancelled, is_failure):
        for leaf in leaves:
            if matches(leaf):
                return leaf
    return leaves[0]


def _is_fenced(error: BaseException) -> bool:
    return isinstance(error, Fenced)


def _is_cancelled(error: BaseException) -> bool:
    return isinstance(error, ReplyCancelled)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
