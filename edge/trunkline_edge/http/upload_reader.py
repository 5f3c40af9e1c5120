"""Reads uploads from the router on behalf of clients that an edge has admitted."""

from __future__ import annotations

from trunkline.v1 import catalogue
from trunkline.v1.media_service_pb2 import DESCRIPTOR, GetMediaRequest, GetMediaResponse

from trunkline_edge.core.upload_frames import FetchedUpload
from trunkline_edge.http.caller_metadata import acting_for
from trunkline_edge.http.router_client import CallFailed, RouterClient

_GET_MEDIA = DESCRIPTOR.services_by_name["MediaService"].methods_by_name["GetMedia"]


class UploadReader:
    """Reads uploads by tenant and key."""

    def __init__(self, router: RouterClient) -> None:
        self._router = router

    async def read(self, tenant: str, key: str) -> FetchedUpload:
        """Read an upload. Raises Refused MEDIA_NOT_FOUND, or ROUTER_UNAVAILABLE for any other failure."""
        request = GetMediaRequest(tenant=tenant, key=key)
        try:
            found = await self._router.unary(_GET_MEDIA, request, metadata=[acting_for(tenant)])
        except CallFailed as failed:
            if failed.reason == catalogue.MEDIA_NOT_FOUND.code:
                raise catalogue.MEDIA_NOT_FOUND.refused(key=key) from None
            raise catalogue.ROUTER_UNAVAILABLE.refused() from None
        assert isinstance(found, GetMediaResponse)
        return FetchedUpload(found.content, found.mime_type)
