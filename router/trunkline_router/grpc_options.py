"""Options of the gRPC server: bounds of messages, connections and pings."""

from __future__ import annotations

#: Bound of one message, in either direction.
MAX_MESSAGE_BYTES = 16 << 20
#: Bound of one call's metadata; a larger call fails with RESOURCE_EXHAUSTED.
MAX_METADATA_BYTES = 64 << 10
#: Shortest interval of a client's pings, with or without calls; a few shorter ones close its connection.
MIN_PING_INTERVAL_S = 5.0
#: Time for a connection's handshakes, up to its HTTP/2 settings; gRPC's default is two minutes.
HANDSHAKE_TIMEOUT_S = 10.0
#: Idle connections of a router with few are closed after as many seconds as it has slots, divided by this.
SLOTS_PER_IDLE_SECOND = 4
MIN_IDLE_S = 5.0


def server_options(max_connections: int, idle_s: float) -> list[tuple[str, int]]:
    """Options for at most `max_connections` on each port, of which those without calls end after `idle_s`.

    Further connections are closed at once. If there are few, those without calls give their place up sooner,
    so that nobody can occupy them all. Calls in progress, such as links, keep a connection open for any time.
    """
    idle_s = min(idle_s, max(MIN_IDLE_S, max_connections / SLOTS_PER_IDLE_SECOND))
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # An edge names the holder of a client's token, whose lists may be long, in metadata.
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Without it, two routers could listen on one port and each get half of the calls.
        ("grpc.so_reuseport", 0),
        # Keepalive pings are not abuse, whether or not there are calls.
        ("grpc.http2.min_ping_interval_without_data_ms", int(MIN_PING_INTERVAL_S * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.max_connection_idle_ms", int(idle_s * 1000)),
    ]
