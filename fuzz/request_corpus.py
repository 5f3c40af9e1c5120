"""Requests as text, and the seeds of the targets that take one."""

from __future__ import annotations

from typing import NamedTuple


class ParsedRequest(NamedTuple):
    """A request, its path still encoded."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def parse_request(text: str) -> ParsedRequest:
    """Parse any text as a request. Characters are bytes, in Latin-1."""
    lines, _, body = text.partition("\n\n")
    first, *rest = lines.split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return ParsedRequest(method, path, query, headers, body.encode("latin-1"))


#: Connect requests: at least one per kind of codec.
CONNECTS = [
    "GET /v1/connect?tenant=demo&agent=echo&platform=web&conversation=person:ann&user=ann&rollup_ms=20",
    "GET /v1/connect?tenant=demo&resume=delivered&token=s3cret\nsec-websocket-protocol: trunkline.v1.proto",
    'GET /v1/connect?tenant=demo&resume=frame\n\n{"type":"resume","positions":[]}',
    'GET /v1/connect?tenant=demo&auth=frame\n\n{"type":"auth","id":"a","token":"e30.e30.AA"}',
    "GET /v1/connect?tenant=demo\nsec-websocket-protocol: trunkline.v1.json, bearer.e30.e30.AA\norigin: https://a",
    "GET /v1/events?tenant=demo&agent=echo&platform=web&conversation=group:t\nlast-event-id: e.1~e.2~e.3~f.4",
    "GET /ws/demo/qq",
    "GET /ws/demo/echo/qq?token=x\nauthorization: Basic dTpw",
    'GET /ws/acme/qq\n\n{"type":"auth","token":"s3cret"}',
    "GET /ws?api_key=demo:echo&platform=qq",
    "GET /ws/\nx-apikey: demo:echo:s3cret\nx-platform: \xe5\xbe\xae\nx-uuid: single_1",
    "GET /ws\nplatform: qq\nauthorization: s3cret",
    "GET /ws?api_key=demo:echo\nplatform: \xe5\xbe\xae\nauthorization: theirs",
    "GET /ws/?EIO=4&transport=polling\nx-apikey: demo:echo:s3cret\nx-platform: qq",
    "GET /ws/?EIO=4&transport=websocket\nplatform: qq\nauthorization: s3cret",
    "GET /api/v1/pipelines/p1/ws/connect?session_type=person",
    "GET /api/v1/pipelines/p1/ws/connect?session_type=group\nauthorization: Bearer x",
    'GET /api/v1/pipelines/p2/ws/connect\n\n{"type":"authenticate","token":"s3cret","workspace_uuid":"w"}',
]

#: Bodies for the HTTP routes.
BODIES = [
    "",
    "{}",
    '{"message":[{"type":"Plain","text":"hello"}]}',
    '{"type":"notice","message_segment":{"type":"text","data":"hello"},"message_id":"m1"}',
]

_FILE = '{"type":"file","mediaType":"image/png","url":"data:image/png;base64,AAEC","filename":"a.png"}'
_PARTS = f'{_FILE},{{"type":"data-x","data":{{"a":[1,null]}}}},{{"type":"text","text":"\\ud83d"}}'
_MESSAGE = f'{{"id":"m1","role":"user","parts":[{_PARTS}]}}'

#: Bodies of requests that a connection answers.
EXCHANGE_BODIES = [
    '{"id":"c1","messages":[{"id":"m1","role":"user","parts":[{"type":"text","text":"hi"}]}]}',
    f'{{"id":"c1","trigger":"regenerate-message","messageId":"a1","messages":[{_MESSAGE}]}}',
    f'{{"id":"c1","trigger":"regenerate-message","message":{_MESSAGE}}}',
    '{"model":"echo","stream":true,"messages":[{"role":"system","content":"x"},{"role":"user","content":"hi"}]}',
    "",
]
