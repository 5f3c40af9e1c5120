#!/bin/sh
# Generate the package trunkline/v1 from the contract, with the plugins that go.mod pins.
# Requires grpcio-tools and googleapis-common-protos: .venv of the repository, or pip install.
set -eu
cd "$(dirname "$0")"
GOBIN="$PWD/bin" go install tool
PATH="$PWD/bin:$PATH" python3 -m grpc_tools.protoc -I ../../protos \
    -I "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    --go_out=. --go-grpc_out=. ../../protos/trunkline/v1/*.proto
