#!/bin/sh
# Generates the Go code of the contract (proto/nspool/v1) into nspoolv1/, or into the folder given.
# Needs Debian's protobuf-compiler and protoc-gen-go-1-3.
#
# The generator is the old one (v1.3, with its grpc plugin) because its code works with both old and new grpc-go and
# protobuf modules. It does not know proto3's `optional`, so it is given the contract with each `optional` field written
# as a oneof of one: the same bytes on the wire, which is how protobuf itself defines `optional`. It is also given the
# import path of this package.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$here/nspoolv1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/proto/nspool/v1" "$work/out"
for file in pool admin image; do
    awk '
        /^ *optional / {
            sub(/^ *optional /, "")
            split($0, word, " ")
            print "  oneof maybe_" word[2] " { " $0 " }"
            next
        }
        /^option go_package/ { print "option go_package = \"nspool.dev/clients/go/nspoolv1;nspoolv1\";"; next }
        { print }
    ' "$root/proto/nspool/v1/$file.proto" >"$work/proto/nspool/v1/$file.proto"
done
ptypes=github.com/golang/protobuf/ptypes
protoc -I "$work/proto" \
    --go_out="plugins=grpc,Mgoogle/protobuf/duration.proto=$ptypes/duration,Mgoogle/protobuf/timestamp.proto=$ptypes/timestamp:$work/out" \
    nspool/v1/pool.proto nspool/v1/admin.proto nspool/v1/image.proto
cp "$work/out/nspool.dev/clients/go/nspoolv1/"*.pb.go "$out/"
