#!/usr/bin/env bash
# Brings a bare Debian to where nspool can be tried and tested: packages, and private engines. `deploy/setup.sh help` says how.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
# Read by the two files below.
# shellcheck disable=SC2034
tools="$target/tools/bin" engines="$target/nspool-engines"
PATH="$tools:$PATH:/usr/sbin:/sbin"

# shellcheck source=deploy/lib/say.sh
. "$here/lib/say.sh"
# shellcheck source=deploy/lib/packages.sh
. "$here/lib/packages.sh"
# shellcheck source=deploy/lib/engines.sh
. "$here/lib/engines.sh"

usage() {
  cat <<'END'
deploy/setup.sh packages test          install what the tests need and is missing, after saying what
deploy/setup.sh engine start [KIND...] start private engines (docker podman) and print the lines for `eval`
deploy/setup.sh engine env             print those lines again
deploy/setup.sh engine exec COMMAND... run a command among the engines: their loopback, their bridges
deploy/setup.sh engine run COMMAND...  start, run the command among the engines, stop
deploy/setup.sh engine stop            end the engines and what runs in them, and remove all they left
deploy/setup.sh demo PROGRAM           run PROGRAM's demo on the engine of this machine, or without one if none answers
deploy/setup.sh section TITLE COMMAND...  run a command under a heading that ends with how long it took
END
}

engine() {
  local verb=${1:-}
  shift || true
  case "$verb" in
    start)
      if [ "$#" -eq 0 ]; then set -- docker podman; fi
      lock_engines
      start_engines manual "$@"
      print_env
      ;;
    env) print_env ;;
    exec) load_env && inside "$@" ;;
    run) with_engines "docker podman" "$@" ;;
    stop)
      lock_engines
      if [ -e "$state" ]; then clear_engines; fi
      ;;
    *) usage >&2 && exit 64 ;;
  esac
}

# The first engine of this machine that answers, in the order in which nspool itself looks.
find_engine() {
  local socket
  for socket in "${DOCKER_HOST:-}" /run/docker.sock /var/run/docker.sock /run/podman/podman.sock; do
    socket=${socket#unix://}
    if engine_answers "$socket"; then
      printf '%s\n' "$socket"
      return 0
    fi
  done
  return 1
}

demo() {
  local program=$1 socket
  if socket=$(find_engine); then
    say "the demo uses the engine at unix://$socket"
    exec "$program" demo --engine-endpoint "unix://$socket" </dev/null
  fi
  say "no engine answers on this machine: the demo makes namespaces without one"
  exec "$program" demo --native </dev/null
}

section() {
  local title=$1 start=$SECONDS code=0
  shift
  printf '\n== %s\n' "$title"
  "$@" </dev/null || code=$?
  if [ "$code" -eq 0 ]; then
    printf '== %s: good after %d s\n' "$title" $((SECONDS - start))
  else
    printf '== %s: FAILED (exit code %d) after %d s\n' "$title" "$code" $((SECONDS - start))
  fi
  return "$code"
}

main() {
  local verb=${1:-help}
  shift || true
  case "$verb" in
    packages)
      case "${1:-}" in
        test) packages "$1" ;;
        *) usage >&2 && exit 64 ;;
      esac
      ;;
    engine) engine "$@" ;;
    demo) demo "$@" ;;
    section) section "$@" ;;
    hold) hold_namespaces "$@" ;;
    help | --help | -h) usage ;;
    *) usage >&2 && exit 64 ;;
  esac
}

main "$@"
