"""The transport side of a message that is written piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trunkline.v1.error_pb2 import Error
from trunkline.v1.message_pb2 import Message, MessageState

from trunkline_client.accumulator import Accumulator
from trunkline_client.delta_buffer import DeltaBuffer
from trunkline_client.errors import TrunklineError
from trunkline_client.interruptible_block import InterruptibleBlock, OnCancel


class MessageProducer(ABC):
    """Opens, extends and ends one message at the router, on behalf of a `MessageWriter`."""

    def __init__(self, on_cancel: OnCancel | None) -> None:
        self.block = InterruptibleBlock(on_cancel)
        #: The message with everything written to it, whether or not the router has it yet.
        self.whole = Accumulator(Message())

    @property
    @abstractmethod
    def buffer(self) -> DeltaBuffer:
        """Deltas on their way to the log."""

    @property
    @abstractmethod
    def failure(self) -> TrunklineError | None:
        """The reason why the message ended, unless this producer ended it."""

    @abstractmethod
    def write_soon(self) -> None:
        """Writes what `buffer` holds as soon as possible."""

    @abstractmethod
    async def open(self) -> Message:
        """Opens the message at the router. Raises if that fails."""

    @abstractmethod
    async def end(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the message after all that was written. Raises if it ends in another state."""

    @abstractmethod
    def end_soon(self, state: MessageState.ValueType, error: Error | None) -> None:
        """Ends the message without waiting, if that is still possible."""

    @abstractmethod
    async def leave(self) -> None:
        """Releases what the message holds; its block has been left."""
