"""Tools find every service and method by server reflection, whichever version of it they speak."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from trunkline_router.app import SERVICES

from tests.router.rpc.in_process_router import InProcessRouter
from tests.support.patience import patient

OTHERS = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}


class Reflection:
    """A tool that uses reflection over one stream, as grpcurl does."""

    def __init__(self, router: InProcessRouter, version: str) -> None:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call: Any = router.channel.stream_stream(
            path, ServerReflectionRequest.SerializeToString, ServerReflectionResponse.FromString
        )
        self._call = call(timeout=patient(10))

    async def ask(self, **request: str) -> ServerReflectionResponse:
        await self._call.write(ServerReflectionRequest(**request))  # type: ignore[arg-type]
        answer: ServerReflectionResponse = await self._call.read()
        return answer

    async def services(self) -> set[str]:
        answer = await self.ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def pool_with(self, symbol: str) -> DescriptorPool:
        """A pool with the files that describe a symbol, in the order in which they came."""
        answer = await self.ask(file_containing_symbol=symbol)
        assert answer.HasField("file_descriptor_response"), (symbol, answer)
        files = [
            FileDescriptorProto.FromString(file)
            for file in answer.file_descriptor_response.file_descriptor_proto
        ]
        pool = DescriptorPool()
        known: set[str] = set()
        while files:
            file = next(each for each in files if known.issuperset(each.dependency))
            files.remove(file)
            known.add(file.name)
            pool.AddSerializedFile(file.SerializeToString())
        return pool


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_services_and_resolves_their_methods(
    router: InProcessRouter, version: str
) -> None:
    tool = Reflection(router, version)
    names = await tool.services()
    assert names >= {*SERVICES, *OTHERS}
    for name in names:
        service = (await tool.pool_with(name)).FindServiceByName(name)
        assert service.methods
        for method in service.methods:
            pool = await tool.pool_with(method.full_name)
            assert pool.FindMethodByName(method.full_name).input_type.full_name == method.input_type.full_name
    assert await tool.pool_with("trunkline.v1.Message.parts")
    for unknown in ("trunkline.v1.BroadcastService.Nothing", "trunkline.v1.Nothing.Broadcast", "Nothing", ""):
        assert (await tool.ask(file_containing_symbol=unknown)).error_response.error_code == 5
