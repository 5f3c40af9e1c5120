"""Compile the contract to Python.

    python protos/compile.py OUT

writes the package ``trunkline.v1`` below OUT: messages, gRPC stubs, types for both, the modules and
.proto files of ``trunkline/v1``, and two generated modules:

- ``comments.py``: the comments of the contract, which descriptors do not carry
- ``catalogue.py``: the error catalogue and the contract's version as plain Python

The build hook (``hatch_build.py``) calls it, so ``pip install`` is enough. Stubs need the grpcio that
they were generated with, or a newer one; ``pyproject.toml`` pins the pair.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import Message

PROTOS = Path(__file__).resolve().parent


def include_paths() -> list[str]:
    """Return the import folders of the contract: itself, protobuf's own, and google/api."""
    grpc_tools = importlib.util.find_spec("grpc_tools")
    google_api = importlib.util.find_spec("google.api")
    if grpc_tools is None or not grpc_tools.submodule_search_locations:
        raise SystemExit("compile.py needs grpcio-tools: pip install grpcio-tools")
    if google_api is None or not google_api.submodule_search_locations:
        raise SystemExit("compile.py needs googleapis-common-protos: pip install it")
    tools = Path(next(iter(grpc_tools.submodule_search_locations)))
    api = Path(next(iter(google_api.submodule_search_locations)))
    return [str(PROTOS), str(tools / "_proto"), str(api.parent.parent)]


def sources() -> list[str]:
    """Return the contract's files, relative to protos/."""
    return sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("trunkline/**/*.proto"))


def protoc(*options: str) -> None:
    """Run the compiler of grpcio-tools on the contract."""
    from grpc_tools import protoc as compiler

    includes = [f"-I{path}" for path in include_paths()]
    if compiler.main(["protoc", *includes, *options, *sources()]) != 0:
        raise SystemExit("protoc failed; its message stands above")


def plugin(name: str) -> str:
    """Return the protoc option that names an installed plugin, found on PATH or beside the interpreter."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit(f"compile.py needs {name}: pip install mypy-protobuf")
    return f"--plugin={name}={found}"


def compile_python(out: Path) -> None:
    """Write the package ``trunkline.v1`` below `out`, replacing the output of an earlier run.

    The .proto files and the modules beside them are copied into the package.
    """
    package = out / "trunkline" / "v1"
    shutil.rmtree(out / "trunkline", ignore_errors=True)
    package.mkdir(parents=True)
    protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet,only_async:{out}",
        plugin("protoc-gen-mypy"),
        plugin("protoc-gen-mypy_grpc"),
    )
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text('"""Generated from protos/; see protos/README.md."""\n')
        (folder / "py.typed").touch()
    for source in (PROTOS / "trunkline" / "v1").iterdir():
        if source.suffix in (".proto", ".py"):
            shutil.copy(source, package)
    (package / "comments.py").write_text(comments_source())
    (package / "catalogue.py").write_text(catalogue_source(out))


def comments_source() -> str:
    """Return the source of ``trunkline/v1/comments.py``."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    with tempfile.TemporaryDirectory() as folder:
        described = Path(folder) / "contract.binpb"
        protoc("--include_source_info", f"--descriptor_set_out={described}")
        files = FileDescriptorSet.FromString(described.read_bytes()).file
    comments: dict[str, str] = {}
    for file in files:
        for location in file.source_code_info.location:
            if location.leading_comments and len(location.path) in (2, 4):
                comments[_path_name(file, location.path)] = _unwrapped(location.leading_comments)
    lines = [f"    {json.dumps(name)}: {json.dumps(text)}," for name, text in sorted(comments.items())]
    return "\n".join([COMMENTS_HEAD, *lines, "}", ""])


def _path_name(file: FileDescriptorProto, path: Sequence[int]) -> str:
    """Return the name, without the package, of the element at a path in a descriptor."""
    names = []
    found: Message = file
    for number, index in zip(path[::2], path[1::2], strict=True):
        field = found.DESCRIPTOR.fields_by_number[number]
        found = getattr(found, field.name)[index]
        names.append(getattr(found, "name", field.name))
    return ".".join(names)


def _unwrapped(comment: str) -> str:
    """Unwrap each paragraph to one line; keep indented tables."""
    paragraphs = []
    for paragraph in comment.strip().split("\n\n"):
        is_table = paragraph.startswith("   ")
        paragraphs.append(paragraph.rstrip() if is_table else " ".join(paragraph.split()))
    return "\n\n".join(paragraphs)


def catalogue_source(out: Path) -> str:
    """Return the source of ``trunkline/v1/catalogue.py``, from the descriptors just generated."""
    sys.path.insert(0, str(out))
    try:
        from trunkline.v1 import edge_service_pb2, error_pb2
    finally:
        sys.path.remove(str(out))
    entries = []
    for value in error_pb2.ErrorCode.DESCRIPTOR.values:
        if value.number == 0:
            continue
        spec = value.GetOptions().Extensions[error_pb2.error_spec]
        name = value.name.removeprefix("ERROR_CODE_")
        fields = (name, spec.text, spec.grpc_status, spec.http_status, spec.close_code)
        arguments = ", ".join(json.dumps(field) for field in fields)
        entries.append(f"{name} = Entry({arguments}, {spec.retryable}, {spec.retry_after_ms})")
    options = edge_service_pb2.DESCRIPTOR.GetOptions()
    minor = options.Extensions[edge_service_pb2.contract_minor]
    return CATALOGUE_HEAD + f"CONTRACT_MINOR = {minor}\n\n" + "\n".join(entries) + CATALOGUE_TAIL


COMMENTS_HEAD = '''\
"""Comments of the contract, by name: an RPC as `PresenceService.GetStats`, a field as `Part.text`, a value
as `Role.ROLE_USER`. Generated from the contract."""

COMMENTS: dict[str, str] = {'''

CATALOGUE_HEAD = '''\
"""The error catalogue and the contract's version. Generated from error.proto and edge_service.proto."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """One entry of the catalogue; the fields are those of ErrorSpec in error.proto."""

    code: str
    text: str
    grpc_status: int
    http_status: int
    close_code: int
    retryable: bool
    retry_after_ms: int

    def sentence(self, **values: object) -> str:
        """Return the text with its placeholders filled in. Raises KeyError if a value is missing."""
        return self.text.format_map(values)

    def refused(self, *, retry_after_ms: int | None = None, **values: object) -> Refused:
        """Return this entry as an exception. `retry_after_ms` overrides the delay of the entry."""
        return Refused(self, self.sentence(**values), values, retry_after_ms)


class Refused(Exception):
    """A refusal for a reason of the catalogue; `str()` is the text with its placeholders filled in.

    `values` are the placeholders' values, for programs. `retry_after_ms` defaults to the entry's.
    """

    def __init__(
        self,
        entry: Entry,
        sentence: str,
        values: Mapping[str, object] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.entry = entry
        self.values = values or {}
        self.retry_after_ms = entry.retry_after_ms if retry_after_ms is None else retry_after_ms


'''

CATALOGUE_TAIL = """

ENTRIES: dict[str, Entry] = {
    entry.code: entry for entry in list(globals().values()) if isinstance(entry, Entry)
}
"""


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    compile_python(Path(sys.argv[1]).resolve())
