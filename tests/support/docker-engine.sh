#!/bin/sh
# Minds one private dockerd: starts it when told, and takes everything away when its standard input ends, which it does also when the
# test process is killed. Usage: sh docker-engine.sh DIR BRIDGE ADDRESS/LEN POOL [dockerd options…]
set -u
dir=$1 bridge=$2 address=$3 pool=$4
shift 4

# Held as long as this minder lives and by nobody else: who gets this lock finds an abandoned folder.
exec 9>"$dir/lock"
flock -n 9 || exit 1
if [ ! -e "/sys/class/net/$bridge" ]; then
    ip link add "$bridge" type bridge && ip addr add "$address" dev "$bridge" && ip link set "$bridge" up || exit 1
fi

start() {
    rm -f "$dir/docker.pid"
    # containerd ends with a killed dockerd, but the next dockerd waits in vain for it if it comes before whoever reaps it.
    [ -s "$dir/exec/containerd/containerd.pid" ] && gone "$(cat "$dir/exec/containerd/containerd.pid")" 5
    dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" -H "unix://$dir/s" \
        --bridge "$bridge" --default-address-pool "$pool" --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false \
        --userland-proxy=false --shutdown-timeout 2 "$@" </dev/null >>"$dir/log" 2>&1 9>&- &
}

gone() { # PID SECONDS
    tries=$(($2 * 10))
    while kill -0 "$1" 2>/dev/null && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
    ! kill -0 "$1" 2>/dev/null
}

end() { # PIDFILE
    [ -s "$1" ] || return 0
    pid=$(cat "$1")
    kill -CONT "$pid" 2>/dev/null
    kill -TERM "$pid" 2>/dev/null
    gone "$pid" 10 || kill -KILL "$pid" 2>/dev/null
    gone "$pid" 5
}

# "start" is the only word; anything else is ignored.
while read -r word; do
    [ "$word" = start ] && start "$@"
done

[ -s "$dir/docker.pid" ] && kill -CONT "$(cat "$dir/docker.pid")" 2>/dev/null
all=$(timeout 5 docker -H "unix://$dir/s" ps -aq 2>/dev/null)
# shellcheck disable=SC2086 # a list of ids
[ -n "$all" ] && timeout 30 docker -H "unix://$dir/s" rm -f $all >/dev/null 2>&1
end "$dir/docker.pid"
end "$dir/exec/containerd/containerd.pid"
# Shims outlive a containerd that was killed; each names our socket in its arguments. Their containers go with them.
for proc in /proc/[0-9]*; do
    [ -r "$proc/cmdline" ] || continue
    if tr '\0' ' ' 2>/dev/null <"$proc/cmdline" | grep -q -- "-address $dir/exec/containerd/containerd.sock"; then
        # shellcheck disable=SC2013 # pids, by words
        for child in $(cat "$proc/task/"*/children 2>/dev/null); do kill -KILL "$child" 2>/dev/null; done
        kill -KILL "${proc#/proc/}" 2>/dev/null
    fi
done
sh "$(dirname "$0")/sweep.sh" "$dir" "$bridge"
