"""Reads JWK Sets over HTTP."""

from __future__ import annotations

import asyncio
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from trunkline_runtime.loopback import is_loopback

from trunkline_edge.auth.jwks import FetchFailed
from trunkline_edge.auth.key_set import MAX_SET_BYTES

#: From the beginning to the last byte.
TIMEOUT_S = 5.0

#: Nothing compressed: a small response could become a large one.
_HEADERS = {
    "accept": "application/jwk-set+json, application/json",
    "accept-encoding": "identity",
    "user-agent": "trunkline-edge",
}


class JwksHttpClient:
    """A `Fetch`: over https, or over http from this machine.

    It follows no redirects, keeps no cookies, and takes no proxies and no passwords from the environment.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, url: str) -> bytes:
        """What is at a URL. Raises FetchFailed where that is not read in time, whole, and in bounds."""
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
            raise FetchFailed(f"no whole answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise FetchFailed(f"the request failed: {type(error).__name__}") from None

    async def aclose(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _target_of(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise FetchFailed("it is not a URL") from None
    if not target.host:
        raise FetchFailed("it is not a URL with a host")
    local = target.host == "localhost" or is_loopback(target.host)
    if target.scheme != "https" and not (target.scheme == "http" and local):
        raise FetchFailed("it must be an https URL, or http on this machine")
    return target


def _client() -> httpx.AsyncClient:
    certificates = httpx.create_ssl_context(trust_env=False)
    # Those of the machine beside the public ones: an identity provider may be the operator's own.
    certificates.load_default_certs()
    return httpx.AsyncClient(
        verify=certificates,
        trust_env=False,
        follow_redirects=False,
        headers=_HEADERS,
        # The whole is timed, not each step.
        timeout=None,
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=0),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def _body_of(response: httpx.Response) -> bytes:
    """The body, read no further than it may be long."""
    if response.status_code != httpx.codes.OK:
        raise FetchFailed(f"the answer's status is {response.status_code}, and not 200")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed("the answer is compressed, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_SET_BYTES:
            raise FetchFailed(f"the answer has more than {MAX_SET_BYTES} bytes")
    return bytes(body)
