"""Lossless translation between LangBot's message chains and the contract's parts.

A component becomes the part of its kind. Keys without a field in that part follow in a custom part,
`langbot:extra`, whose object is merged into the component on the way back. A component without such a part,
or too large for it, becomes a custom part `langbot.<Type>` with the whole component as JSON. Values that are
no components, and those beyond the number of parts in a message, go into one custom part, `langbot:chain`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from trunkline.v1.message_pb2 import CustomPart, MentionPart, Part, QuotePart, TextPart

from trunkline_edge.dialects.langbot.json_values import value_of
from trunkline_edge.dialects.langbot.media import component_of_media, part_of_media
from trunkline_edge.dialects.native.json_output import json_object

Component = dict[str, Any]

#: Prefix of the custom part of a whole component. No component type yields one of the two names below.
PREFIX = "langbot."
_EXTRA = "langbot:extra"
_CHAIN = "langbot:chain"

# Limits of the contract; larger values go into a custom part, which has none of its own.
_MAX_PARTS = 64
_MAX_TEXT_CHARACTERS = 262_144
_MAX_NAME_CHARACTERS = 256
_MAX_ID_CHARACTERS = 128
_USER = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")

_MEDIA = {"Image": "image", "Voice": "audio", "File": "file"}
#: LangBot has no video component, so videos become files.
_MEDIA_TYPES = {"image": "Image", "audio": "Voice", "video": "File", "file": "File"}

#: A component in LangBot's plain text: prefix, and the keys of which the first non-empty one follows.
_TEXT_FORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Plain": ("", ("text",)),
    "At": ("@", ("display", "target")),
    "AtAll": ("@All", ()),
    "Image": ("[Image]", ()),
    "Voice": ("[Voice]", ()),
    "File": ("[File]", ("name",)),
    "Forward": ("[Chat history]", ()),
    "Unknown": ("Unknown Message: ", ("text",)),
}
_SILENT = frozenset({"Source", "Quote", "Face", "Custom"})

_encode = msgspec.json.Encoder(order="sorted").encode


def parts_of(chain: Sequence[Any]) -> list[Part]:
    """A client's chain, any JSON values, as one part or more. Raises FrameRefused for media too large."""
    if not chain:
        return [Part(text=TextPart())]
    parts: list[Part] = []
    for index, component in enumerate(chain):
        converted = _parts_of(component)
        is_last = index == len(chain) - 1
        if len(parts) + len(converted) > _MAX_PARTS - (not is_last):
            return [*parts, _custom(_CHAIN, list(chain[index:]))]
        parts += converted
    return parts


def chain_of(parts: Iterable[Part]) -> list[Any]:
    """Parts as a client's chain, without reasoning and tool calls."""
    chain: list[Any] = []
    for part in parts:
        kind = part.WhichOneof("content")
        if kind != "custom":
            component = _component_of(part)
            chain += [component] if component is not None else []
            continue
        custom = part.custom
        value = _value_of(custom)
        if custom.name == _CHAIN and isinstance(value, list):
            chain += value
        elif custom.name == _EXTRA and isinstance(value, dict) and chain and isinstance(chain[-1], dict):
            chain[-1] |= value
        elif custom.name.startswith(PREFIX) and isinstance(value, dict):
            chain.append(value)
        else:
            chain.append({"type": "Custom", "name": custom.name, "data": value})
    return chain


def content_of(chain: Iterable[Any]) -> str:
    """A chain as plain text, in LangBot's form."""
    return "".join([_component_text(component) for component in chain])


def _component_text(component: Any) -> str:
    if isinstance(component, str):
        return component
    kind = component.get("type") if isinstance(component, dict) else None
    if not isinstance(kind, str) or kind in _SILENT or kind.startswith("WeChat"):
        return ""
    if kind not in _TEXT_FORMS:
        return f"Unknown Message: Unknown component type: {kind}"
    before, keys = _TEXT_FORMS[kind]
    return before + next((str(value) for key in keys if (value := component.get(key))), "")


# From components to parts


def _parts_of(component: Any) -> list[Part]:
    kind = component.get("type") if isinstance(component, dict) else None
    if not isinstance(kind, str) or len(PREFIX + kind) > _MAX_NAME_CHARACTERS:
        return [_custom(_CHAIN, [component])]
    part = _part_of(kind, component)
    restored = _component_of(part) if part is not None else None
    if part is None or restored is None or not restored.keys() <= component.keys():
        return [_custom(PREFIX + kind, component)]
    extra = {
        key: value
        for key, value in component.items()
        if key not in restored or not _same(value, restored[key])
    }
    return [part, _custom(_EXTRA, extra)] if extra else [part]


def _part_of(kind: str, component: Component) -> Part | None:
    """The part of the component's kind; None if there is none, or the component does not fit it."""
    match kind:
        case "Plain":
            text = component.get("text")
            if isinstance(text, str) and 0 < len(text) <= _MAX_TEXT_CHARACTERS:
                return Part(text=TextPart(text=text))
        case "At":
            user = _id_text(component.get("target"))
            if _USER.fullmatch(user):
                return Part(mention=MentionPart(user=user, name=_name(component.get("display"))))
        case "AtAll":
            return Part(mention=MentionPart(everybody=True))
        case "Quote":
            return _part_of_quote(component)
        case "Image" | "Voice" | "File":
            media = part_of_media(kind, component)
            return Part(**{_MEDIA[kind]: media}) if media is not None else None  # type: ignore[arg-type]
    return None


def _part_of_quote(component: Component) -> Part | None:
    origin = component.get("origin")
    text = content_of(origin) if isinstance(origin, list) else ""
    message_id = _id_text(component.get("id"))
    if len(text) > _MAX_TEXT_CHARACTERS or len(message_id) > _MAX_ID_CHARACTERS:
        return None
    return Part(quote=QuotePart(message_id=message_id, text=text))


def _id_text(value: Any) -> str:
    """An id, a number or string in LangBot; empty for other types."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _name(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_NAME_CHARACTERS else ""


def _custom(name: str, value: Any) -> Part:
    return Part(custom=CustomPart(name=name, json=msgspec.json.encode(value).decode()))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON; 1, 1.0 and true differ."""
    if isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and one == other
    return _encode(one) == _encode(other)


# From parts to components


def _component_of(part: Part) -> Component | None:
    """The component for a part that is not custom; None for parts that clients do not get."""
    match part.WhichOneof("content"):
        case "text":
            return {"type": "Plain", "text": part.text.text} if part.text.text else None
        case "image" | "audio" | "video" | "file" as kind:
            return component_of_media(_MEDIA_TYPES[kind], getattr(part, kind))
        case "mention":
            return _component_of_mention(part.mention)
        case "quote":
            return _component_of_quote(part.quote)
    return None


def _component_of_mention(mention: MentionPart) -> Component:
    if mention.everybody:
        return {"type": "AtAll"}
    component: Component = {"type": "At", "target": mention.user}
    if mention.name:
        component["display"] = mention.name
    return component


def _component_of_quote(quote: QuotePart) -> Component:
    component: Component = {"type": "Quote"}
    if quote.message_id:
        component["id"] = quote.message_id
    if quote.text:
        component["origin"] = [{"type": "Plain", "text": quote.text}]
    return component


def _value_of(custom: CustomPart) -> Any:
    """The value of a custom part; invalid JSON stays text."""
    if custom.WhichOneof("content") != "json":
        return json_object(custom.data)
    return value_of(custom.json)
