"""The native protocol, docs/protocol.md: in JSON, in protobuf, and as an event stream."""
