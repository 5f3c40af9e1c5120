"""Status details that a client cannot decode count as absent."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc.status_pb2 import Status
from trunkline_client import OutcomeUnknown, Refused
from trunkline_client.rpc_errors import error_from_rpc

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


def failed_call(code: grpc.StatusCode, details: bytes) -> grpc.aio.AioRpcError:
    """The error of a call that ended with these status details."""
    metadata = grpc.aio.Metadata(("grpc-status-details-bin", details))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, "no")


@pytest.mark.parametrize(
    "details",
    [
        b"\xff",
        Status(details=[AnyProto(type_url=ERROR_INFO, value=b"\xff")]).SerializeToString(),
    ],
    ids=["status", "detail"],
)
def test_malformed_status_details_count_as_absent(details: bytes) -> None:
    error = error_from_rpc(failed_call(grpc.StatusCode.UNAVAILABLE, details), "r", may_have_effect=True)
    assert isinstance(error, OutcomeUnknown)
    error = error_from_rpc(failed_call(grpc.StatusCode.UNAUTHENTICATED, details), "r", may_have_effect=True)
    assert isinstance(error, Refused)
    assert error.code == "UNAUTHENTICATED"
