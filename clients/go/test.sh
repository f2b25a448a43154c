#!/bin/sh
# Tests the Go client with Debian's Go packages, in GOPATH mode (no module is downloaded).
#
#   NSPOOL_TEST_DAEMON="target/debug/examples/fake_daemon" clients/go/test.sh [go test arguments]
#   clients/go/test.sh --without-daemon
#
# NSPOOL_TEST_DAEMON is a command line that, with `unix:/path` added as last argument, runs a daemon on that socket. The
# tests kill it under load. Without one they fail, unless --without-daemon says that only the fake server is wanted.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ "${1:-}" = --without-daemon ]; then
    shift
    export NSPOOL_TEST_WITHOUT_DAEMON=1
elif [ -z "${NSPOOL_TEST_DAEMON:-}" ]; then
    echo "clients/go/test.sh: NSPOOL_TEST_DAEMON is not set: name a daemon to test with (a command line that takes" \
        "unix:/path as its last argument), or say --without-daemon" >&2
    exit 2
fi
# go test runs in the folder of the package, but relative paths in NSPOOL_TEST_DAEMON mean the caller's.
export NSPOOL_TEST_CWD="$PWD"

missing=
need() { [ -n "$(eval "$2" 2>/dev/null)" ] || missing="$missing $1"; }
need golang-go "command -v go gofmt"
need protobuf-compiler "command -v protoc"
need protoc-gen-go-1-3 "dpkg-query -W -f='\${db:Status-Abbrev}' protoc-gen-go-1-3 | grep ^ii"
need golang-google-grpc-dev "ls /usr/share/gocode/src/google.golang.org/grpc/clientconn.go"
need golang-github-golang-protobuf-1-3-dev "ls /usr/share/gocode/src/github.com/golang/protobuf/proto/lib.go"
if [ -n "$missing" ]; then
    echo "clients/go/test.sh: missing: apt-get install$missing" >&2
    exit 2
fi

# A GOPATH in which this package has its import path, beside Debian's libraries.
mkdir -p "$root/target/clients-go/src/nspool.dev/clients"
ln -sfn "$here" "$root/target/clients-go/src/nspool.dev/clients/go"
export GO111MODULE=off GOPATH="$root/target/clients-go:/usr/share/gocode" GOFLAGS=
packages="nspool.dev/clients/go nspool.dev/clients/go/nspoolv1"

unformatted=$(gofmt -l "$here"/*.go)
if [ -n "$unformatted" ]; then
    echo "clients/go/test.sh: run gofmt -w on: $unformatted" >&2
    exit 1
fi
"$here/generate.sh" "$root/target/clients-go/generated"
if ! diff -r "$root/target/clients-go/generated" "$here/nspoolv1"; then
    echo "clients/go/test.sh: nspoolv1 is not what the contract gives: run clients/go/generate.sh" >&2
    exit 1
fi
# shellcheck disable=SC2086 # a list of words
go vet $packages
# The race detector needs a C compiler.
race=
if [ "$(go env CGO_ENABLED)" = 1 ] && command -v gcc >/dev/null; then
    race=-race
fi
# shellcheck disable=SC2086 # lists of words, one of them perhaps empty
exec go test $race -count=1 -timeout=10m "$@" $packages
