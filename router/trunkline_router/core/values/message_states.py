"""Short names of the contract's message states."""

from trunkline.v1.message_pb2 import MessageState

OPEN = MessageState.MESSAGE_STATE_OPEN
COMPLETE = MessageState.MESSAGE_STATE_COMPLETE
CANCELLED = MessageState.MESSAGE_STATE_CANCELLED
FAILED = MessageState.MESSAGE_STATE_FAILED
EXPIRED = MessageState.MESSAGE_STATE_EXPIRED
RECALLED = MessageState.MESSAGE_STATE_RECALLED
