"""Validation of tenant settings, beyond the constraints of single fields."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import ClientAuth, TenantSettings
from trunkline_runtime.jwk import check_jwk, without_secret
from trunkline_runtime.loopback import is_loopback_host


def check_settings(settings: TenantSettings) -> None:
    """Raise Refused INVALID_ARGUMENT if the settings are invalid, other tenants aside."""
    _check_keys(settings.client_auth)
    _check_jwks_url(settings.client_auth.jwks_url)
    for index, origin in enumerate(settings.origins):
        _check_origin(origin, index)


def set_fields(into: TenantSettings, source: TenantSettings, fields: Sequence[str]) -> None:
    """Set these fields, each as a whole. Raises Refused INVALID_ARGUMENT for an unknown field."""
    known = TenantSettings.DESCRIPTOR.fields_by_name
    for field in fields:
        if field not in known:
            problem = f"{field} is no field of TenantSettings; its fields are {', '.join(known)}"
            raise catalogue.INVALID_ARGUMENT.refused(field="update_mask", problem=problem)
    only = TenantSettings()
    only.CopyFrom(source)
    for field in known:
        if field in fields:
            into.ClearField(field)  # type: ignore[arg-type]
        else:
            only.ClearField(field)  # type: ignore[arg-type]
    into.MergeFrom(only)


def restore_secrets(settings: TenantSettings, current: TenantSettings) -> TenantSettings:
    """Return the settings with secrets restored to keys that came without them."""
    known = {key.kid: key for key in current.client_auth.keys}
    for key in settings.client_auth.keys:
        before = known.get(key.kid)
        # Callers send back the key as they read it, or leave it empty.
        redacted = ("", without_secret(before.jwk)) if before is not None else ()
        if before is not None and before.algorithm == key.algorithm == "HS256" and key.jwk in redacted:
            key.jwk = before.jwk
    return settings


def _check_keys(auth: ClientAuth) -> None:
    kids = set()
    for index, key in enumerate(auth.keys):
        field = f"client_auth.keys[{index}]"
        if key.kid in kids:
            raise _invalid(f"{field}.kid", f"two keys are called {key.kid}")
        kids.add(key.kid)
        try:
            check_jwk(key.algorithm, key.jwk)
        except ValueError as error:
            raise _invalid(f"{field}.jwk", str(error)) from None


def _check_jwks_url(url: str) -> None:
    if not url:
        return
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise _invalid("client_auth.jwks_url", "is not a URL") from None
    local = is_loopback_host(host)
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        problem = "must be an https URL, or http on the edge's own machine"
        raise _invalid("client_auth.jwks_url", problem)


def _check_origin(origin: str, index: int) -> None:
    try:
        parts = urlsplit(origin)
        good = (
            parts.scheme in ("http", "https")
            and parts.netloc
            and f"{parts.scheme}://{parts.netloc}" == origin
        )
    except ValueError:
        good = False
    if not good:
        problem = "must be a scheme and a host, such as https://example.com, without a path"
        raise _invalid(f"origins[{index}]", problem)


def _invalid(field: str, problem: str) -> Refused:
    return catalogue.INVALID_ARGUMENT.refused(field=f"settings.{field}", problem=problem)
