#!/bin/sh
# Minds one private podman API service; see docker-engine.sh. Usage: sh podman-engine.sh DIR LINK-PREFIX
set -u
dir=$1 prefix=$2
export CONTAINERS_CONF="$dir/containers.conf" CONTAINERS_REGISTRIES_CONF="$dir/registries.conf"

exec 9>"$dir/lock"
flock -n 9 || exit 1

# Docker takes registries on loopback without TLS, podman only when told.
printf '[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n' >"$dir/registries.conf"
export CONTAINERS_REGISTRIES_CONF="$dir/registries.conf"

pod() { timeout 60 podman --root "$dir/data" --runroot "$dir/run" --tmpdir "$dir/tmp" --network-config-dir "$dir/net" \
    --cgroup-manager cgroupfs --events-backend file --runtime runc "$@" </dev/null 9>&-; }

gone() { # PID SECONDS
    tries=$(($2 * 10))
    while kill -0 "$1" 2>/dev/null && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
    ! kill -0 "$1" 2>/dev/null
}

while read -r word; do
    if [ "$word" = start ]; then
        rm -f "$dir/s"
        # exec, so that the pid is podman's own.
        (exec podman --root "$dir/data" --runroot "$dir/run" --tmpdir "$dir/tmp" --network-config-dir "$dir/net" \
            --cgroup-manager cgroupfs --events-backend file --runtime runc system service --time 0 "unix://$dir/s" \
            </dev/null >>"$dir/log" 2>&1 9>&-) &
        echo $! >"$dir/podman.pid"
    fi
done

if [ -s "$dir/podman.pid" ]; then
    pid=$(cat "$dir/podman.pid")
    kill -CONT "$pid" 2>/dev/null
    kill -TERM "$pid" 2>/dev/null
    gone "$pid" 5 || kill -KILL "$pid" 2>/dev/null
fi
# Joiners keep a container from being removed: --depend takes them along.
all=$(pod ps -aq 2>/dev/null)
# shellcheck disable=SC2086 # a list of ids
[ -n "$all" ] && pod rm -f -t 0 --depend $all >/dev/null 2>&1
sh "$(dirname "$0")/sweep.sh" "$dir" "$prefix"
