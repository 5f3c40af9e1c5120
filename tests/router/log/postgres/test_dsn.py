"""URLs of databases: parsed like asyncpg does, and never repeated with their password."""

from __future__ import annotations

from pathlib import Path

import pytest
from trunkline_router.log.postgres.dsn import Dsn
from trunkline_runtime.process import StartError


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("postgresql://bridge:secret@db/log", "postgresql://bridge@db:5432/log"),
        ("postgres://bridge:s%40c%2Fr@db:5433/log", "postgresql://bridge@db:5433/log"),
        ("postgresql://bridge:secret@[::1]:5433/log", "postgresql://bridge@[::1]:5433/log"),
        ("postgresql://bridge:secret@[::1]/log", "postgresql://bridge@[::1]:5432/log"),
        ("postgresql://b:secret@one:1,two/log?sslmode=require", "postgresql://b@one:1,two:5432/log"),
        ("postgresql:///log?host=one,two&port=1,2&user=b&password=secret", "postgresql://b@one:1,two:2/log"),
        ("postgresql://b:secret@db/log?search_path=own", "postgresql://b@db:5432/log (schema own)"),
        ("postgresql://b:secret@%2Frun%2Fpostgresql/log", "postgresql://b@/run/postgresql:5432/log"),
        ("postgresql://b:secret@db", "postgresql://b@db:5432/b"),
        (" postgresql://b:secret@db/log\n", "postgresql://b@db:5432/log"),
    ],
)
def test_description_names_the_database_without_the_password(text: str, description: str) -> None:
    assert Dsn.parse(text).describe() == description


@pytest.mark.parametrize(
    "text",
    [
        "secret",
        "mysql://bridge:secret@db/log",
        "postgresql://bridge:se@cret@db/log",
        "postgresql://bridge:se/cret@db/log",
        "postgresql://bridge:se#cret@db/log",
        "postgresql://bridge:secret@db:port/log",
        "postgresql://bridge:secret@[::1/log",
        "postgresql://bridge:secret@[::1]5432/log",
        "postgresql://bridge:secret@one,,two/log",
        "postgresql://bridge:secret@one,two/log?port=1,2,3&host=one,two",
        "postgresql://bridge:secret@db/log?sslmode",
        "host=db password=secret",
    ],
)
def test_other_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(StartError) as caught:
        Dsn.parse(text)
    assert "TRUNKLINE_DATABASE_URL is not the URL" in str(caught.value)
    assert "cret" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("parameter", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
def test_files_of_certificates_must_exist(parameter: str, tmp_path: Path) -> None:
    dsn = f"postgresql://b:secret@db/log?sslmode=verify-full&{parameter}={tmp_path}/file.pem"
    with pytest.raises(StartError) as caught:
        Dsn.parse(dsn)
    reason = f"{tmp_path}/file.pem, which {parameter} in TRUNKLINE_DATABASE_URL names: No such file"
    assert str(caught.value).startswith(f"cannot read {reason}")
    (tmp_path / "file.pem").touch()
    Dsn.parse(dsn)
