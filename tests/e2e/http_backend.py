"""Backend on plain HTTP and JSON."""

from __future__ import annotations

from typing import Any, Self

import httpx

from tests.support.patience import patient
from tests.support.processes import OPERATOR_KEY

TIMEOUT_S = patient(15)
JSON = dict[str, Any]


class HttpBackend:
    """Calls an edge for one tenant."""

    def __init__(self, edge: str, tenant: str = "demo", **headers: str) -> None:
        url = f"http://{edge}/v1/tenants/{tenant}"
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.close()

    def get(self, path: str, **parameters: object) -> JSON:
        """Send a GET request; `address__agent` stands for the parameter `address.agent`."""
        query = {name.replace("__", "."): str(value) for name, value in parameters.items()}
        return _ok(self.http.get(path, params=query))

    def post(self, path: str, **body: object) -> JSON:
        """Send a POST request."""
        return _ok(self.http.post(path, json=body))

    def administer(self, path: str, **body: object) -> JSON:
        """Send a POST request with the operator's key."""
        return _ok(self.http.post(path, json=body, headers={"authorization": f"Bearer {OPERATOR_KEY}"}))

    def patch(self, path: str, **body: object) -> JSON:
        """Send a PATCH request."""
        return _ok(self.http.patch(path, json=body))


def reason_of(response: httpx.Response) -> str:
    """Return the error code of the catalogue in an error response."""
    refusal = response.json()
    assert refusal.keys() == {"code", "message", "details"}
    return str(refusal["details"][0]["reason"])


def _ok(response: httpx.Response) -> JSON:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    found: JSON = response.json()
    return found
