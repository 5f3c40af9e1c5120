"""The native protocol, docs/protocol.md: JSON, protobuf and event stream."""
