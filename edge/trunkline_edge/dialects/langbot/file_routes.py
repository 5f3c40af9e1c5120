"""The HTTP routes by which LangBot's clients upload files and read them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trunkline.v1 import catalogue
from trunkline.v1.media_service_pb2 import GetMediaRequest, UploadMediaRequest
from trunkline_runtime.media_types import BINARY, IMAGE_TYPES, INLINE_TYPES, MEDIA_TYPES

from trunkline_edge.dialects.dialect import (
    DialectRoute,
    HttpReply,
    HttpRequest,
    RouterCall,
    RouteSteps,
    tenant_in_path,
)
from trunkline_edge.dialects.langbot.multipart_form import FORM, read_file
from trunkline_edge.dialects.langbot.pipeline_owner import NAME, tenant_of_request
from trunkline_edge.dialects.langbot.rest_replies import failed, ok, render_refusal
from trunkline_edge.dialects.langbot.upload_keys import key_in, upload_name
from trunkline_edge.dialects.paths import Path

#: Largest upload, whatever the tenant's limit: what a message may have inline in one part.
MAX_UPLOAD_BYTES = 8 << 20

#: Extension of files without one.
_NO_EXTENSION = "bin"

#: Headers with which a browser neither guesses another type nor executes anything of an upload.
_SAFE = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=300",
}


class _BadUpload(Exception):
    """An upload that is refused; the text is for the user."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def file_routes() -> Sequence[DialectRoute]:
    """The routes."""

    def upload(path: str, handle: Callable[[HttpRequest], RouteSteps]) -> DialectRoute:
        return DialectRoute(
            "POST",
            Path(path),
            handle,
            render_refusal,
            tenant_of_upload,
            body_type=FORM,
            check_head=check_tenant,
        )

    return (
        upload("/api/v1/files/images", _upload_image),
        upload("/api/v1/files/documents", _upload_document),
        DialectRoute(
            "GET", Path("/api/v1/files/image/{tenant}/{file}"), _download, render_refusal, tenant_in_path
        ),
    )


def tenant_of_upload(request: HttpRequest) -> str:
    """The tenant of an upload, which names no pipeline; empty for none.

    Without a token or workspace of a tenant it is the only one with pipelines that declares the origin of the
    page, as a preflight has nothing else, or that is open to the caller.
    """
    tenant = tenant_of_request(request)
    if tenant:
        return tenant
    origin, owners = request.headers.get("origin", ""), request.tenants.owners_for(NAME)
    of_page = [policy.tenant for policy in owners if origin and origin in policy.settings.origins]
    is_local = request.is_local
    candidates = of_page or [
        policy.tenant for policy in owners if request.tenants.is_open(policy.tenant, is_local)
    ]
    return candidates[0] if len(candidates) == 1 else ""


def check_tenant(request: HttpRequest) -> None:
    """Raises Refused FORBIDDEN for an upload without a tenant."""
    if not tenant_of_upload(request):
        # Not UNAUTHORIZED, upon which LangBot's web client logs its user out.
        problem = "the upload names no tenant; declare LangBot's workspace or audience"
        raise catalogue.FORBIDDEN.refused(problem=problem)


def _upload_image(request: HttpRequest) -> RouteSteps:
    return _upload(request, "file_key", images_only=True)


def _upload_document(request: HttpRequest) -> RouteSteps:
    return _upload(request, "file_id", images_only=False)


def _upload(request: HttpRequest, field: str, *, images_only: bool) -> RouteSteps:
    """Store the file of a form. The reply has its name in `field`."""
    tenant = tenant_of_upload(request)
    try:
        extension, wanted = _checked(request, tenant, images_only=images_only)
    except _BadUpload as bad:
        return failed(bad.status, str(bad))
    stored = yield RouterCall("MediaService.UploadMedia", wanted)
    return ok({field: upload_name(tenant, stored.key, extension)})


def _checked(request: HttpRequest, tenant: str, *, images_only: bool) -> tuple[str, UploadMediaRequest]:
    """The name extension and the call for a form. Raises _BadUpload."""
    kind = "image" if images_only else "file"
    try:
        file = read_file(request.headers.get("content-type", ""), request.body)
    except ValueError as problem:
        raise _BadUpload(400, str(problem)) from None
    if file is None or not file.content:
        raise _BadUpload(400, f"No {kind} provided in field `file`")
    policy = request.tenants.policy(tenant)
    limit = min(MAX_UPLOAD_BYTES, policy.settings.limits.upload_bytes if policy else MAX_UPLOAD_BYTES)
    if len(file.content) > limit:
        raise _BadUpload(413, f"The {kind} has {len(file.content)} bytes; at most {limit} are allowed")
    extension = _extension_of(file.name)
    types = IMAGE_TYPES if images_only else dict(MEDIA_TYPES) | {_NO_EXTENSION: BINARY}
    if not extension and not images_only:
        extension = _NO_EXTENSION
    if extension not in types:
        raise _BadUpload(415, f"Files of this type are not accepted. Allowed: {', '.join(sorted(types))}")
    return extension, UploadMediaRequest(tenant=tenant, content=file.content, mime_type=types[extension])


def _extension_of(name: str) -> str:
    """The lower-case extension of a file's name, of which nothing else is kept. Raises _BadUpload."""
    if any(each in "/\\" or not each.isprintable() for each in name) or name.strip(". ") == "":
        raise _BadUpload(400, "File name contains invalid characters")
    stem, dot, extension = name.rpartition(".")
    return extension.lower() if stem and dot else ""


def _download(request: HttpRequest) -> RouteSteps:
    """Return an upload."""
    tenant, file = request.parameters["tenant"], request.parameters["file"]
    # A name without a key is looked up, too, so that callers without permission learn nothing.
    key = key_in(file) or "none"
    found = yield RouterCall("MediaService.GetMedia", GetMediaRequest(tenant=tenant, key=key))
    disposition = "inline" if found.mime_type in INLINE_TYPES else "attachment"
    headers = _SAFE | {"content-disposition": f'{disposition}; filename="{file}"'}
    return HttpReply(200, found.content, found.mime_type, headers)
