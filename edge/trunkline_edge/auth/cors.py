"""CORS (https://fetch.spec.whatwg.org/#http-cors-protocol): the pages that may read a tenant's responses.

The tenant's `origins` are the policy, for HTTP/JSON, the routes of dialects and event streams alike. An
unknown tenant, and a path that names none, allow no page.
"""

from __future__ import annotations

from trunkline.v1.edge_service_pb2 import TenantPolicy

from trunkline_edge.auth.request_source import RequestSource

#: Request headers that a page may set, or that OpenAI's SDK sets for it.
REQUEST_HEADERS = (
    "accept, authorization, cache-control, content-type, idempotency-key, last-event-id, openai-beta,"
    " openai-organization, openai-project, traceparent, tracestate, user-agent, x-api-key, x-conversation-id,"
    " x-requested-with, x-stainless-arch, x-stainless-helper-method, x-stainless-lang, x-stainless-os,"
    " x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime,"
    " x-stainless-runtime-version, x-stainless-timeout, x-workspace-id"
)

#: Response headers that a page may read beside those that every page may.
RESPONSE_HEADERS = (
    "allow, retry-after, retry-after-ms, www-authenticate, x-conversation-id, x-should-retry,"
    " x-vercel-ai-ui-message-stream"
)

#: Time for which a browser may keep the answer to a preflight. Then it learns of changed origins.
MAX_AGE_S = 600


def cors_headers(policy: TenantPolicy | None, source: RequestSource) -> dict[str, str]:
    """Headers of any response, errors included; `policy` is None for no or an unknown tenant.

    A response with credentials names a declared origin, never `*`.
    """
    if policy is None:
        return {}
    settings = policy.settings
    if not settings.origins:
        return {
            "access-control-allow-origin": "*",
            "access-control-expose-headers": RESPONSE_HEADERS,
        }
    headers = {"vary": "Origin"}
    if source.origin and source.origin in settings.origins:
        headers["access-control-allow-origin"] = source.origin
        headers["access-control-expose-headers"] = RESPONSE_HEADERS
        if settings.allow_credentials:
            headers["access-control-allow-credentials"] = "true"
    return headers


def preflight_headers(policy: TenantPolicy | None, source: RequestSource, allowed: str) -> dict[str, str]:
    """Headers of the response to OPTIONS, which needs no credentials; `allowed` lists the path's methods."""
    headers = {"allow": allowed, **cors_headers(policy, source)}
    if "access-control-allow-origin" in headers:
        del headers["access-control-expose-headers"]
        headers["access-control-allow-methods"] = allowed
        headers["access-control-allow-headers"] = REQUEST_HEADERS
        headers["access-control-max-age"] = str(MAX_AGE_S)
    return headers
