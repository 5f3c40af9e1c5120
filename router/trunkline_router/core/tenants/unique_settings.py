"""Settings that belong to one tenant only: names reserved for dialects, and shared secrets of clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trunkline.v1 import catalogue
from trunkline.v1.catalogue import Refused
from trunkline.v1.tenant_pb2 import TenantSettings
from trunkline_runtime.reserved_names import reserved_names

_TOKEN = "client_auth.token_digests"
#: The field that says it, and what it says.
_Claim = tuple[str, str]


class UniqueSettings:
    """Whose each is, as far as is declared; asked for a tenant it takes no longer for there being others."""

    def __init__(self) -> None:
        self._owners: dict[_Claim, str] = {}
        self._of: dict[str, list[_Claim]] = {}

    def check(self, wanted: Mapping[str, TenantSettings]) -> None:
        """Raises Refused INVALID_ARGUMENT where one of these would have what another has, of these or not."""
        owners: dict[_Claim, str] = {}
        for name, settings in wanted.items():
            for claim in _claims(settings):
                owner = owners.setdefault(claim, name)
                before = self._owners.get(claim, name)
                if before not in wanted:
                    owner = before
                if owner != name:
                    raise _two(claim, owner, name)

    def set(self, name: str, settings: TenantSettings) -> None:
        """A tenant was declared, or changed, as was checked; those that pass claims on, in any order."""
        self.gone(name)
        if claims := list(_claims(settings)):
            self._of[name] = claims
            self._owners.update(dict.fromkeys(claims, name))

    def gone(self, name: str) -> None:
        """A tenant is no more."""
        for claim in self._of.pop(name, ()):
            # Another one may have it already.
            if self._owners.get(claim) == name:
                del self._owners[claim]


def _claims(settings: TenantSettings) -> Iterator[_Claim]:
    for reserved in reserved_names(settings):
        yield reserved.field, reserved.name
    for digest in settings.client_auth.token_digests:
        yield _TOKEN, digest


def _two(claim: _Claim, owner: str, name: str) -> Refused:
    field, said = claim
    what = "a token is" if field == _TOKEN else f"{said} is"
    problem = f"{what} given to two tenants, {owner} and {name}"
    return catalogue.INVALID_ARGUMENT.refused(field=f"settings.{field}", problem=problem)
