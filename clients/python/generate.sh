#!/bin/sh
# Generates the Python code of the contract (proto/nspool/v1) into src/nspool/v1, or into the folder given.
# Needs grpcio-tools 1.71 for the Python named by $PYTHON (default: the venv that test.sh makes).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$here/src}
python=${PYTHON:-$root/target/clients-python/venv/bin/python}
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I "$root/proto" \
    --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    nspool/v1/pool.proto nspool/v1/admin.proto nspool/v1/image.proto
