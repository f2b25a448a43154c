#!/bin/sh
# Tests the Python client in a venv of its own (target/clients-python/venv; PyPI is needed the first time).
#
#   NSPOOL_TEST_DAEMON="target/debug/examples/fake_daemon" clients/python/test.sh [pytest arguments]
#   clients/python/test.sh --without-daemon
#
# NSPOOL_TEST_DAEMON is a command line that, with `unix:/path` added as last argument, runs a daemon on that socket. The
# tests kill it under load. Without one they fail, unless --without-daemon says that only the fake server is wanted.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/target/clients-python/venv
without=
for argument in "$@"; do
    [ "$argument" = --without-daemon ] && without=yes
done
if [ -z "$without" ] && [ -z "${NSPOOL_TEST_DAEMON:-}" ]; then
    echo "clients/python/test.sh: NSPOOL_TEST_DAEMON is not set: name a daemon to test with (a command line that takes" \
        "unix:/path as its last argument), or say --without-daemon" >&2
    exit 2
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "clients/python/test.sh: $python must be Python 3.9 or newer with venv: apt-get install python3 python3-venv" >&2
    exit 2
fi
if ! cmp -s "$here/pyproject.toml" "$venv/made-for.toml"; then
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable "${here}[test]"
    cp "$here/pyproject.toml" "$venv/made-for.toml"
fi

# A relative path in NSPOOL_TEST_DAEMON means the caller's folder, so that is where the tests run.
"$venv/bin/python" -m mypy --config-file "$here/pyproject.toml" --cache-dir "$root/target/clients-python/mypy"
exec "$venv/bin/python" -m pytest -c "$here/pyproject.toml" --rootdir "$here" -p no:cacheprovider "$@" "$here/tests"
