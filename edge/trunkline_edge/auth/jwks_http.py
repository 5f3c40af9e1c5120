"""Fetches JWK Sets over HTTP."""

from __future__ import annotations

import asyncio
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from trunkline_runtime.loopback import is_loopback_host

from trunkline_edge.auth.jwks import FetchFailed
from trunkline_edge.auth.key_set import MAX_SET_BYTES

#: For a whole fetch, up to the last byte.
TIMEOUT_S = 5.0

#: No compression: a small response could expand to a large one.
_HEADERS = {
    "accept": "application/jwk-set+json, application/json",
    "accept-encoding": "identity",
    "user-agent": "trunkline-edge",
}


class JwksHttpClient:
    """A `Fetch` over https, or over http from this machine.

    Follows no redirects, keeps no cookies, and takes neither proxies nor passwords from the environment.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, url: str) -> bytes:
        """The body at a URL. Raises FetchFailed unless it arrives in time, whole and within MAX_SET_BYTES."""
        target = _target_of(url)
        if self._client is None:
            self._client = _client()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", target) as response,
            ):
                return await _body_of(response)
        except TimeoutError:
            raise FetchFailed(f"no complete response within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise FetchFailed(f"the request failed: {type(error).__name__}") from None

    async def aclose(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _target_of(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise FetchFailed("not a URL") from None
    if not target.host:
        raise FetchFailed("the URL has no host")
    is_local = is_loopback_host(target.host)
    if target.scheme != "https" and not (target.scheme == "http" and is_local):
        raise FetchFailed("the URL must use https, or http on this machine")
    return target


def _client() -> httpx.AsyncClient:
    certificates = httpx.create_ssl_context(trust_env=False)
    # The system's authorities too: an identity provider may be the operator's own.
    certificates.load_default_certs()
    return httpx.AsyncClient(
        verify=certificates,
        trust_env=False,
        follow_redirects=False,
        headers=_HEADERS,
        # __call__ times the whole fetch, not each step.
        timeout=None,
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=0),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def _body_of(response: httpx.Response) -> bytes:
    """Read the body, up to MAX_SET_BYTES."""
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"the response has status {response.status_code}, not 200")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed("the response is compressed, although the request allows none")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_SET_BYTES:
            raise FetchFailed(f"the response has more than {MAX_SET_BYTES} bytes")
    return bytes(body)
