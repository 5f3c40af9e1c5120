"""MediaService: uploads of clients, until the messages that use them."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio
from trunkline.v1 import catalogue
from trunkline.v1.media_service_pb2 import (
    GetMediaRequest,
    GetMediaResponse,
    UploadMediaRequest,
    UploadMediaResponse,
)
from trunkline.v1.media_service_pb2_grpc import MediaServiceServicer
from trunkline_runtime.media_types import ALLOWED_TYPES

from trunkline_router.core.validation.media_constraints import MAX_UPLOAD_BYTES
from trunkline_router.core.validation.validator import check
from trunkline_router.media.media_store import MediaStore, Upload, UploadLimits
from trunkline_router.rpc.client_calls import calling_user
from trunkline_router.rpc.status import rpc_method
from trunkline_router.runtime import RouterRuntime

#: Characters of a type that a refusal quotes.
_MAX_QUOTED_CHARS = 64


class MediaServicer(MediaServiceServicer):
    """Stores and returns uploads."""

    def __init__(self, runtime: RouterRuntime, media: MediaStore) -> None:
        self._runtime = runtime
        self._media = media

    @rpc_method
    async def UploadMedia(  # noqa: N802
        self, request: UploadMediaRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> UploadMediaResponse:
        """See media_service.proto."""
        limits = self._runtime.core.directory.active_tenant(request.tenant).limits
        limit = min(limits.upload_bytes, MAX_UPLOAD_BYTES)
        if len(request.content) > limit:
            raise catalogue.BODY_TOO_LARGE.refused(limit=limit)
        check(request)
        if not request.content:
            raise catalogue.INVALID_ARGUMENT.refused(field="content", problem="must be set")
        if request.mime_type not in ALLOWED_TYPES:
            raise catalogue.MEDIA_TYPE_FORBIDDEN.refused(
                type=request.mime_type[:_MAX_QUOTED_CHARS] or "unset"
            )
        stored = await self._media.put(
            request.tenant,
            calling_user(),
            Upload(request.content, request.mime_type),
            UploadLimits(limits.media_files, limits.media_bytes),
            time.time(),
        )
        response = UploadMediaResponse(key=stored.key)
        response.expires_at.FromMilliseconds(int(stored.expires_at_s * 1000))
        return response

    @rpc_method
    async def GetMedia(  # noqa: N802
        self, request: GetMediaRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> GetMediaResponse:
        """See media_service.proto."""
        check(request)
        self._runtime.core.directory.active_tenant(request.tenant)
        upload = await self._media.get(request.tenant, request.key, time.time())
        if upload is None:
            raise catalogue.MEDIA_NOT_FOUND.refused(key=request.key)
        return GetMediaResponse(content=upload.content, mime_type=upload.mime_type)
