"""LangBot's own tokens, and the tenant that accepts them."""

from __future__ import annotations

import time
from typing import Any

from joserfc.jwk import OctKey

from tests.support.signing import signed

SECRET = "b2f6c1a09d8e47f3b2f6c1a09d8e47f3"
AUDIENCE = "langbot-instance:5f2b"
ACCOUNT = "0b6e5a1c-6f0e-4a55-9a53-0d8a3e1f7c11"
WORKSPACE = "7d1c8f0a-2f51-4d2b-8d35-b1a0f4f2a111"
#: Tenant `dash` of a tenants file, with LangBot's key.
DASH = f"""
[tenants.dash]
pipelines = ["p1"]
workspaces = ["{WORKSPACE}"]
audiences = ["{AUDIENCE}"]
[[tenants.dash.keys]]
kid = "langbot"
algorithm = "HS256"
secret = "{SECRET}"
"""


def token(*, secret: str = SECRET, **claims: Any) -> str:
    """A token as LangBot issues it; a claim set to `...` is omitted."""
    payload = {
        "user": "admin@example.com",
        "iss": "langbot-core",
        "aud": AUDIENCE,
        "exp": int(time.time()) + 604_800,
        "sub": ACCOUNT,
        "account_revision": 0,
    }
    payload = {name: value for name, value in (payload | claims).items() if value is not ...}
    return signed({"alg": "HS256", "typ": "JWT"}, payload, "HS256", OctKey.import_key(secret))


def headers(value: str) -> dict[str, str]:
    """The headers of the web client."""
    return {"Authorization": f"Bearer {value}", "X-Workspace-Id": WORKSPACE}
