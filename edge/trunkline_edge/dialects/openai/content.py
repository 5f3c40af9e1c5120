"""Translation of a message's content into parts."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from trunkline.v1.message_pb2 import MediaPart, Part
from trunkline.v1.tenant_pb2 import AGENT_MEDIA_ANY, AGENT_MEDIA_IMAGES, AgentMedia

from trunkline_edge.dialects.openai.errors import invalid

MAX_INLINE_BYTES = 8 << 20
MAX_URL_CHARACTERS = 4096
MAX_MIME_CHARACTERS = 256
MAX_NAME_CHARACTERS = 256

#: Separates the MIME type of a data URI from its data.
_MARK = ";base64,"


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalContent(msgspec.Struct, tag_field="type", tag="refusal"):
    """A model's refusal, in an earlier message of the assistant."""

    refusal: str


class ImageUrl(msgspec.Struct):
    """The URL of an image, which may be a data URI."""

    url: str


class ImageContent(msgspec.Struct, tag_field="type", tag="image_url"):
    """An image."""

    image_url: ImageUrl


class InputAudio(msgspec.Struct):
    """Sound in base64."""

    data: str
    format: str


class AudioContent(msgspec.Struct, tag_field="type", tag="input_audio"):
    """Sound."""

    input_audio: InputAudio


class FileData(msgspec.Struct):
    """A file as a data URI, or by the id of an upload to OpenAI."""

    file_data: str = ""
    filename: str = ""
    file_id: str = ""


class FileContent(msgspec.Struct, tag_field="type", tag="file"):
    """A file."""

    file: FileData


ContentPart: TypeAlias = TextContent | RefusalContent | ImageContent | AudioContent | FileContent
Content: TypeAlias = str | list[ContentPart]


def text_of(content: Content | None) -> str:
    """The text in the content of an earlier message."""
    if not isinstance(content, list):
        return content or ""
    texts = [part.text for part in content if isinstance(part, TextContent)]
    return "\n".join(texts)


def parts_of(path: str, content: Content | None) -> list[Part]:
    """The parts of the user's message. Raises Refused, which names the field below `path`."""
    if not content:
        raise invalid(path, "must not be empty")
    if isinstance(content, str):
        part = Part()
        part.text.text = content
        return [part]
    parts = [_part_of(f"{path}[{index}]", item) for index, item in enumerate(content)]
    if not any(part.text.text or not part.HasField("text") for part in parts):
        raise invalid(path, "must not be empty")
    return parts


def _part_of(path: str, item: ContentPart) -> Part:
    part = Part()
    match item:
        case TextContent():
            part.text.text = item.text
        case ImageContent():
            _put_url(f"{path}.image_url.url", part.image, item.image_url.url)
        case AudioContent():
            audio = item.input_audio
            if not audio.format.isalnum() or len(audio.format) > MAX_MIME_CHARACTERS // 2:
                raise invalid(f"{path}.input_audio.format", "must be the name of a format, such as wav")
            part.audio.mime_type = f"audio/{audio.format.lower()}"
            _put_inline(f"{path}.input_audio.data", part.audio, audio.data)
        case FileContent():
            if not item.file.file_data:
                raise invalid(f"{path}.file.file_id", "is not supported; send file_data")
            part.file.name = item.file.filename[:MAX_NAME_CHARACTERS]
            _put_url(f"{path}.file.file_data", part.file, item.file.file_data)
        case RefusalContent():
            raise invalid(path, "a user's message has no refusal")
    return part


def _put_url(path: str, media: MediaPart, url: str) -> None:
    """Take the bytes of a data URI, or another URL as it is."""
    if url[:5].lower() == "data:":
        head, mark, data = url.partition(_MARK)
        mime_type = head[5:].partition(";")[0]
        if not mark or not 0 < len(mime_type) <= MAX_MIME_CHARACTERS:
            raise invalid(path, "must be data:<MIME type>;base64,<data>")
        media.mime_type = mime_type
        _put_inline(path, media, data)
    elif url.lower().startswith(("https://", "http://")) and len(url) <= MAX_URL_CHARACTERS:
        media.url = url
    else:
        raise invalid(path, f"must be http, https or data; at most {MAX_URL_CHARACTERS} characters")


def _put_inline(path: str, media: MediaPart, data: str) -> None:
    try:
        found = binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError):
        raise invalid(path, "is not valid base64") from None
    if not 0 < len(found) <= MAX_INLINE_BYTES:
        raise invalid(path, f"has {len(found)} bytes; 1 to {MAX_INLINE_BYTES} are allowed")
    media.inline = found
    media.size_bytes = len(found)


def refuse_unaccepted(path: str, parts: Sequence[Part], accepts: AgentMedia.ValueType, agent: str) -> None:
    """Raises Refused for media that the agent does not accept; `path` is the field of the parts."""
    for index, part in enumerate(parts):
        kind = part.WhichOneof("content")
        if (
            kind == "text"
            or accepts == AGENT_MEDIA_ANY
            or (kind == "image" and accepts == AGENT_MEDIA_IMAGES)
        ):
            continue
        raise invalid(f"{path}[{index}]", f"agent {agent} does not accept media of this kind: {kind}")
