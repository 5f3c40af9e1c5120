"""Parses TRUNKLINE_DATABASE_URL, without ever repeating the password in it."""

from __future__ import annotations

from typing import NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

from trunkline_runtime.process import StartError

_SCHEMES = ("postgresql", "postgres")
_PORT = 5432
#: Parameters that name files, which are read at each connect.
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


class Host(NamedTuple):
    """A server of a DSN: a name, an address or the folder of a Unix socket."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


class Dsn(NamedTuple):
    """URL of a PostgreSQL database; `text` contains the password."""

    text: str
    #: Tried in order; empty if the environment names the server (PGHOST), or nothing does.
    hosts: tuple[Host, ...]
    user: str
    database: str
    schema: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a URL. Raises StartError; the text contains no part of the URL but names of files."""
        try:
            parts = urlsplit(text.strip())
            query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
            # Split like asyncpg, which connects with the same text: an @ in a password must be escaped.
            credentials, _, servers = parts.netloc.rpartition("@")
            if parts.scheme not in _SCHEMES or "@" in credentials or parts.fragment:
                raise ValueError
            names = unquote(servers) or query.get("host", [""])[-1]
            ports = query.get("port", [""])[-1].split(",")
            hosts = tuple(_hosts(names, ports)) if names else ()
        except ValueError:
            raise StartError(
                "TRUNKLINE_DATABASE_URL is not the URL of a PostgreSQL database, as"
                " postgresql://user:password@host:5432/database. In the user and the password, write special"
                " characters as %xx: %40 for @, %2F for /, %23 for #, %25 for %."
            ) from None
        for name in _FILES:
            _check_file(name, query.get(name, [""])[-1])
        user = unquote(credentials.partition(":")[0]) or query.get("user", [""])[-1]
        database = unquote(parts.path.removeprefix("/")) or query.get("dbname", [""])[-1]
        return cls(text.strip(), hosts, user, database or user, query.get("search_path", [""])[-1])

    def describe(self) -> str:
        """Return the URL without its password and options, but with the schema."""
        user = f"{self.user}@" if self.user else ""
        schema = f" (schema {self.schema})" if self.schema else ""
        return f"postgresql://{user}{','.join(map(str, self.hosts))}/{self.database}{schema}"


def _check_file(parameter: str, path: str) -> None:
    """Raise StartError if a parameter names a file that cannot be read; asyncpg's error does not name it."""
    try:
        if path:
            open(path, "rb").close()
    except OSError as error:
        raise StartError(
            f"cannot read {path}, which {parameter} in TRUNKLINE_DATABASE_URL names: {error.strerror}"
        ) from None


def _hosts(names: str, ports: list[str]) -> list[Host]:
    hosts = []
    servers = names.split(",")
    if len(ports) == 1:
        ports *= len(servers)
    for server, default in zip(servers, ports, strict=True):
        name, port = server, ""
        if server.startswith("["):
            name, closing, port = server[1:].partition("]")
            if not closing or (port and not port.startswith(":")):
                raise ValueError(server)
            port = port[1:]
        elif not server.startswith("/"):
            name, _, port = server.partition(":")
        if not name:
            raise ValueError(server)
        hosts.append(Host(name, int(port or default or _PORT)))
    return hosts
