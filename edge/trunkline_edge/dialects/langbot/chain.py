"""LangBot's message chains, and the contract's parts: each as the other, and nothing is lost.

What a component says is put into the part of its kind. What that has no field for follows it in a custom
part (`langbot:extra`), to be laid over the component again. A component that has no such part, or does not
fit into one, is a custom part of its own, `langbot.<Type>`, with the whole component as JSON; what is
no component at all, or is over the number of parts that a message may have, is in `langbot:chain`.
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

#: Before the type of a component that is kept as it is. No type makes one of the two names below.
PREFIX = "langbot."
_EXTRA = "langbot:extra"
_CHAIN = "langbot:chain"

# What the contract allows; what is over it goes into a custom part, which has no limit of its own.
_MAX_PARTS = 64
_MAX_TEXT_CHARACTERS = 262_144
_MAX_NAME_CHARACTERS = 256
_MAX_ID_CHARACTERS = 128
_USER = re.compile(r"[^\s/:\x00-\x1f\x7f-\x9f]{1,128}")

_MEDIA = {"Image": "image", "Voice": "audio", "File": "file"}
#: LangBot knows no films: they are files.
_MEDIA_TYPES = {"image": "Image", "audio": "Voice", "video": "File", "file": "File"}

#: How LangBot writes a component in a text: what comes first, and the fields of which one follows.
_WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
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
    """What a client says, any JSON values, as at least one part. Raises FrameRefused for media too large."""
    if not chain:
        return [Part(text=TextPart())]
    parts: list[Part] = []
    for index, component in enumerate(chain):
        these = _parts_of(component)
        is_last = index == len(chain) - 1
        if len(parts) + len(these) > _MAX_PARTS - (not is_last):
            return [*parts, _custom(_CHAIN, list(chain[index:]))]
        parts += these
    return parts


def chain_of(parts: Iterable[Part]) -> list[Any]:
    """Parts as a client is shown them. What an agent thinks and does on the way is left out."""
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
    """A chain as one text, as LangBot shows it."""
    return "".join([_words(component) for component in chain])


def _words(component: Any) -> str:
    if isinstance(component, str):
        return component
    kind = component.get("type") if isinstance(component, dict) else None
    if not isinstance(kind, str) or kind in _SILENT or kind.startswith("WeChat"):
        return ""
    if kind not in _WORDS:
        return f"Unknown Message: Unknown component type: {kind}"
    before, keys = _WORDS[kind]
    return before + next((str(value) for key in keys if (value := component.get(key))), "")


# From components to parts


def _parts_of(component: Any) -> list[Part]:
    kind = component.get("type") if isinstance(component, dict) else None
    if not isinstance(kind, str) or len(PREFIX + kind) > _MAX_NAME_CHARACTERS:
        return [_custom(_CHAIN, [component])]
    part = _part_of(kind, component)
    shown = _component_of(part) if part is not None else None
    if part is None or shown is None or not shown.keys() <= component.keys():
        return [_custom(PREFIX + kind, component)]
    extra = {
        key: value for key, value in component.items() if key not in shown or not _same(value, shown[key])
    }
    return [part, _custom(_EXTRA, extra)] if extra else [part]


def _part_of(kind: str, component: Component) -> Part | None:
    """The part of the component's kind; None where there is none, or the component does not fit."""
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
    """An id, which LangBot has as a number or as text; empty where it is neither."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _name(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _MAX_NAME_CHARACTERS else ""


def _custom(name: str, value: Any) -> Part:
    return Part(custom=CustomPart(name=name, json=msgspec.json.encode(value).decode()))


def _same(one: Any, other: Any) -> bool:
    """The same JSON: 1, 1.0 and true are not."""
    if isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and one == other
    return _encode(one) == _encode(other)


# From parts to components


def _component_of(part: Part) -> Component | None:
    """What a part other than a custom one is shown as; None for what is not shown."""
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
    shown: Component = {"type": "At", "target": mention.user}
    if mention.name:
        shown["display"] = mention.name
    return shown


def _component_of_quote(quote: QuotePart) -> Component:
    shown: Component = {"type": "Quote"}
    if quote.message_id:
        shown["id"] = quote.message_id
    if quote.text:
        shown["origin"] = [{"type": "Plain", "text": quote.text}]
    return shown


def _value_of(custom: CustomPart) -> Any:
    """What a custom part holds. What is said to be JSON and is not is text."""
    if custom.WhichOneof("content") != "json":
        return json_object(custom.data)
    return value_of(custom.json)
