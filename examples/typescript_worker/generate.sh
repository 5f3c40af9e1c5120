#!/bin/sh
# Generate gen/ from the contract and from the two packages of Google that it uses.
# Requires grpcio-tools and googleapis-common-protos: .venv of the repository, or pip install.
set -eu
cd "$(dirname "$0")"
site_packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p gen
PATH="$PWD/node_modules/.bin:$PATH" python3 -m grpc_tools.protoc -I ../../protos -I "$site_packages" \
    --es_out=gen --es_opt=target=js+dts,import_extension=js \
    google/api/annotations.proto google/api/http.proto google/rpc/error_details.proto \
    ../../protos/trunkline/v1/*.proto
