"""The edge's core: events in, effects and data to write out. No I/O, no clock.

From the outside in:

- `edge`: the composition, with the events of the link and of time
- `backpressure`: closes slow clients, withholds credit from the router
- `router_frames`, `client_frames`: frames for one connection, and from one
- `sessions`: opening, closing and heartbeats of connections
- `fanout`, `rollup`, `topic`, `subscribers`: published frames, on their way to subscribers
- `read_control`, `rate_limits`, `token_refresh`, `token_expiry`, `handshakes`, `heartbeats`: one rule each
- `connection`: the state of one client; `effects`: what the runtime is asked to do
"""
