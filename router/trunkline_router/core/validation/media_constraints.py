"""Constraints on uploads; part of `message_constraints.CONSTRAINTS`."""

from __future__ import annotations

from trunkline_router.core.validation.constraints import ID, TOKEN, Constraint, at_most

#: Largest upload: what one media part of a message may have inline.
MAX_UPLOAD_BYTES = 8 << 20

MEDIA_CONSTRAINTS: dict[str, Constraint] = {
    "UploadMediaRequest.tenant": ID,
    "UploadMediaRequest.content": at_most(MAX_UPLOAD_BYTES, "bytes"),
    "UploadMediaRequest.mime_type": at_most(256, "characters"),
    "GetMediaRequest.tenant": ID,
    "GetMediaRequest.key": TOKEN,
}
