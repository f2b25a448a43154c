#!/usr/bin/env bash
# The promises of setup.sh's private engines, on real ones: the exit code is handed on, and nothing is left, however a run ends. Uses a
# target folder of its own, so that engines started by hand in this checkout stay out of it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d "${CARGO_TARGET_DIR:-$here/../target}/setup-test.XXXXXX")
export CARGO_TARGET_DIR=$work
state="$work/nspool-engines/state"
setup="$here/setup.sh"
trap '"$setup" engine stop; rm -rf "$work"' EXIT

wrong() {
  printf 'not as promised: %s\n' "$*" >&2
  exit 1
}

# await CONDITION...: a level, within 60 s.
await() {
  local until=$((SECONDS + 60))
  until "$@"; do
    [ "$SECONDS" -lt "$until" ] || wrong "this did not come true: $*"
    sleep 0.1
  done
}

# What the host must not notice: links, mounts, iptables' chains, and names in the folders that engines use.
host() {
  ip -br link | cut -d' ' -f1 | sort
  cut -d' ' -f5 /proc/self/mountinfo | grep -F -e "$work" -e /tmp/nspe || true
  ls -d /run/containerd /run/docker /run/netns /run/libpod /run/runc /run/crun /var/lib/cni /var/lib/containers 2>/dev/null || true
}

value() { sed -n "s/^$1=//p" "$state"; }

# Remembers what the next run is known by, for `nothing_left`.
remember() {
  token=$(value token)
  run=$(value run)
  [ -d "$run" ] || wrong "no folder $run"
}

# A process without an environment to show has ended.
carried() { grep -qsa "NSPOOL_ENGINES=$1" /proc/[0-9]*/environ; }

nothing_left() {
  [ ! -e "$run" ] || wrong "$run is still there"
  [ ! -e "$state" ] || wrong "the state is still there"
  ! carried "$token" || wrong "processes of $token are left"
  ! grep -qsaz "^$run/" /proc/[0-9]*/cmdline || wrong "processes that work on $run are left"
  [ -z "$(find /sys/fs/cgroup -name "nspool-$token*")" ] || wrong "control groups of $token are left"
  [ "$(host)" = "$before" ] || wrong "the host has changed: $(diff <(printf '%s\n' "$before") <(host))"
}

# A command that starts a container on each engine and a daemon that ignores every polite word, says when it is there, and stays.
cat >"$work/stay" <<'END'
set -e
for engine in "$NSPOOL_TEST_DOCKER" "$NSPOOL_TEST_PODMAN"; do
  tar -C / -c "$(realpath --relative-to=/ "$(command -v busybox)")" | docker -H "unix://$engine" import - localhost/nspool-setup-test >/dev/null
  docker -H "unix://$engine" run -d localhost/nspool-setup-test "$(realpath "$(command -v busybox)")" sleep 1000 >/dev/null
done
(trap "" HUP INT TERM; exec setsid sleep 1000) &
: >"$CARGO_TARGET_DIR/ready"
sleep 1000
END

# end_by SIGNAL CODE: ends such a run and waits for the exit code. perl gives it back the SIGINT that a background job is denied.
end_by() {
  local pid code=0
  rm -f "$work/ready"
  perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' "$setup" engine run bash "$work/stay" </dev/null &
  pid=$!
  await test -e "$work/ready"
  remember
  kill "-$1" "$pid"
  wait "$pid" || code=$?
  [ "$code" = "$2" ] || wrong "exit code $code after $1"
}

before=$(host)

code=0
# shellcheck disable=SC2016 # expanded by the inner shell
"$setup" engine run bash -c 'cp "$0" "$0.seen"; test -n "$NSPOOL_TEST_DOCKER" && test -n "$NSPOOL_TEST_PODMAN" && exit 7' "$state" || code=$?
[ "$code" = 7 ] || wrong "exit code $code of a command that ends with 7"
token=$(sed -n 's/^token=//p' "$state.seen")
run=$(sed -n 's/^run=//p' "$state.seen")
nothing_left

end_by INT 130
nothing_left
end_by TERM 143
nothing_left

end_by KILL 137
"$setup" engine start >/dev/null
[ "$(value token)" != "$token" ] || wrong "the engines of a killed run were used again"
! carried "$token" || wrong "the next start left processes of a killed run"

# Engines started by hand are used, and stay.
remember
"$setup" engine run true
[ "$(value token)" = "$token" ] || wrong "engines that were started by hand are gone after a run"

# Even with the engines and the keeper of their namespaces killed, nothing stays; but what another checkout's engines still use does.
other() { CARGO_TARGET_DIR=$work/other "$setup" engine "$@"; }
trap '"$setup" engine stop; other stop; rm -rf "$work"' EXIT
other start >/dev/null
kill -KILL "$(value docker)" "$(value podman)" "$(value holder)"
"$setup" engine stop
other run grep -q ' /run/netns .* tmpfs ' /proc/self/mountinfo || wrong "another checkout's engines lost what they keep in private places"
other stop
nothing_left
printf 'all as promised\n'
