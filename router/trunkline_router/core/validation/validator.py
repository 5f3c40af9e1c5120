"""Input validation: the one place that enforces the constraints of the contract."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf.message import Message as AnyMessage
from trunkline.v1 import catalogue
from trunkline.v1.address_pb2 import Address

from trunkline_router.core.validation.compiled_checks import CheckCompiler, CompiledCheck, InvalidField
from trunkline_router.core.validation.message_constraints import CONSTRAINTS

#: Longer addresses are not cached: they may carry unknown fields of any size.
MAX_CACHED_BYTES = 4096

_COMPILER = CheckCompiler(CONSTRAINTS)


class _CheckOfType(dict[type[AnyMessage], CompiledCheck]):
    def __missing__(self, key: type[AnyMessage]) -> CompiledCheck:
        found = self[key] = _COMPILER.check_of(key.DESCRIPTOR)  # type: ignore[arg-type]
        return found


_CHECKS = _CheckOfType()


def check(message: AnyMessage, field: str = "", *, size: int | None = None) -> None:
    """Check a message, and all messages in it, against the constraints of the contract.

    `size` is an upper bound of the serialized size if the caller knows one; protobuf would serialize the
    message to measure it.
    Raises Refused INVALID_ARGUMENT for the first field at fault, with its path below `field`.
    """
    try:
        size_problem, check_fields = _CHECKS[type(message)]
        if (
            size_problem
            and (size is None or size_problem(size))
            and (problem := size_problem(message.ByteSize()))
        ):
            raise InvalidField(problem)
        check_fields(message)
    except InvalidField as invalid:
        path = ".".join([*([field] if field else []), *reversed(invalid.path)])
        raise catalogue.INVALID_ARGUMENT.refused(
            field=path or message.DESCRIPTOR.name, problem=invalid.problem
        ) from None


def topic_address(address: Address, field: str = "address") -> Address:
    """Return the address if it is a topic's. Raises Refused INVALID_ARGUMENT for a connection's."""
    if address.WhichOneof("target") == "connection":
        raise catalogue.INVALID_ARGUMENT.refused(field=field, problem="a connection has no log")
    return address


_check_address_fields = _COMPILER.check_of(Address.DESCRIPTOR).check_fields


def _check_address(address: Any) -> None:
    serialized = address.SerializeToString()
    if len(serialized) <= MAX_CACHED_BYTES:
        _check_serialized_address(serialized)
    else:
        _check_serialized_address.__wrapped__(serialized)


@lru_cache(maxsize=4096)
def _check_serialized_address(serialized: bytes) -> None:
    """Check an address. Few addresses make up most traffic, so valid ones are cached."""
    address = Address.FromString(serialized)
    _check_address_fields(address)
    _check_combination(address)


def _check_combination(address: Address) -> None:
    """Check which fields are set together, as the comment on Address requires."""
    target = address.WhichOneof("target")
    if target in ("user", "connection"):
        if address.agent or address.platform:
            problem = f"must be empty if {target} is set"
            raise InvalidField(problem, "agent" if address.agent else "platform")
    elif address.platform and not address.agent:
        raise InvalidField("must be set if platform is", "agent")
    elif target == "conversation" and not address.platform:
        raise InvalidField("must be set if conversation is", "platform" if address.agent else "agent")


_COMPILER.replace(Address.DESCRIPTOR, _check_address)
