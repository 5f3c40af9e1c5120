"""Settings that every process has, and the kinds of settings that processes share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from trunkline_runtime.logs import Format

PREFIX = "TRUNKLINE_"

#: A setting that names a file; an empty value names none.
File = Annotated[Path | None, BeforeValidator(lambda given: given or None)]


class ProcessSettings(BaseSettings):
    """Settings of a process, read from environment variables `TRUNKLINE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    log_format: Format = Field(default="auto", description="auto: text on a terminal, else JSON")
