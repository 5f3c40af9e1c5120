"""Server reflection, by both versions of its service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
#: The services that `add_reflection` registers.
SERVICES = (f"{V1ALPHA}.ServerReflection", f"{V1}.ServerReflection")


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Describe these services, and reflection itself, to callers."""
    _describe_v1()
    servicer = _SymbolServicer((*services, *SERVICES))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    # The messages of both versions are the same on the wire.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES[1], handlers),))


class _SymbolServicer(ReflectionServicer):  # type: ignore[misc]  # the package is untyped
    """Finds methods, too, which Python's descriptor pool does not know as symbols."""

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            if method in descriptor_pool.Default().FindServiceByName(service).methods_by_name:
                fully_qualified_name = service
        except KeyError:
            pass
        return super()._file_containing_symbol(request, fully_qualified_name)


def _describe_v1() -> None:
    """Add version 1 of the service, which the package lacks, to the descriptors. Idempotent."""
    described = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(described)
    described.ClearField("options")
    # Names of files, packages and types; nothing else contains the word.
    renamed = text_format.MessageToString(described).replace("v1alpha", "v1")
    # Adding the same content again has no effect.
    descriptor_pool.Default().AddSerializedFile(
        text_format.Parse(renamed, FileDescriptorProto()).SerializeToString()
    )
