"""gRPC channels from an edge to its router, and the credentials of both."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio
from trunkline_runtime import http_proxy, link_key
from trunkline_runtime.certificates import (
    ReloadingFile,
    TlsError,
    read_authorities,
    read_pair,
    system_authorities,
)
from trunkline_runtime.process import StartError

from trunkline_edge.settings import EdgeSettings

_NAMES = "TRUNKLINE_ROUTER_CA, TRUNKLINE_ROUTER_CERT and TRUNKLINE_ROUTER_KEY name the files"


class RouterChannelFactory:
    """Opens channels to a router, with or without TLS. Changed certificate files are reloaded."""

    def __init__(
        self,
        files: ReloadingFile[grpc.ChannelCredentials] | None = None,
        name: str = "",
        key: str = "",
        *,
        use_proxy: bool = False,
    ) -> None:
        """`name` is the one in the router's certificate if its address has another; `key` is the link key.

        `use_proxy` connects through the HTTP proxy that the environment names.
        """
        self._files = files
        self._name = name
        self.uses_proxy = use_proxy
        #: Metadata of every call.
        self.metadata: tuple[tuple[str, str], ...] = ((link_key.METADATA, key),) if key else ()

    @classmethod
    def from_settings(cls, settings: EdgeSettings) -> RouterChannelFactory:
        """Create a factory. Raises StartError if settings are incomplete or a file cannot be used."""
        if (settings.router_cert is None) != (settings.router_key is None):
            raise StartError("TRUNKLINE_ROUTER_CERT and TRUNKLINE_ROUTER_KEY must be set together.")
        files = None
        if settings.router_tls or settings.router_ca or settings.router_cert:
            paths = [path for path in (settings.router_ca, settings.router_cert, settings.router_key) if path]
            try:
                files = ReloadingFile(paths, lambda: _credentials(settings))
            except TlsError as error:
                raise StartError(f"{error}. {_NAMES}.") from None
        key = settings.link_key.get_secret_value()
        return cls(files, settings.router_name, key, use_proxy=settings.router_proxy)

    @property
    def is_encrypted(self) -> bool:
        """Channels use TLS."""
        return self._files is not None

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials for new channels, None without TLS; another object once the files have changed."""
        return self._files.current if self._files is not None else None

    def open(self, router: str, options: Sequence[tuple[str, int | str]]) -> grpc.aio.Channel:
        """Open a channel to the router at this address."""
        credentials = self.credentials
        options = [*options, http_proxy.channel_option(self.uses_proxy)]
        if credentials is None:
            return grpc.aio.insecure_channel(router, options=options)
        if self._name:
            options = [*options, ("grpc.ssl_target_name_override", self._name)]
        return grpc.aio.secure_channel(router, credentials, options=options)


def _credentials(settings: EdgeSettings) -> grpc.ChannelCredentials:
    roots = read_authorities(settings.router_ca) if settings.router_ca else system_authorities()
    if settings.router_cert is None or settings.router_key is None:
        return grpc.ssl_channel_credentials(roots)
    pair = read_pair(settings.router_cert, settings.router_key)
    return grpc.ssl_channel_credentials(roots, pair.key, pair.certificate)
