# shellcheck shell=bash
# Private engines for the tests and the demo: one dockerd and one podman service that share nothing with those of the host.
#
# They live in a network and a mount namespace of their own: their bridges, iptables rules, sysctls and mounts are never seen by the host
# and go when their last process goes. What runs against them in earnest (`engine run`, `engine exec`) enters both namespaces, so that
# loopback, bridges and /run are the same for engine and test. Their sockets can be reached from the host, too.
#
# What belongs to them is known by a random token: it is in the environment of every process started here and inherited by theirs, and in
# the name of the containers' control group. Only what carries it is ever ended. The token is on disk before the first process starts, so
# what a killed run left behind is found and cleared away by the next start.
#
# Sourced, never run. Knows nothing about cargo or nspool.

# The data folders may be large and go below target/; sockets go into a folder with a short name, because their paths have 108 bytes at most.
state="$engines/state"
docker_log="$engines/docker.log"
podman_log="$engines/podman.log"

# One start, stop or run at a time in this checkout. The lock ends with the process, however that ends; engines do not inherit it.
lock_engines() {
  mkdir -p "$engines"
  exec 9>"$engines/lock"
  flock -w 5 9 || fail "another run in this checkout is using the private engines" "Wait until it is done. The lock is $engines/lock."
}

# Fields of the state file, empty when there is none: token, run (folder of the sockets), boot, owner (manual or run), kinds.
field() { [ ! -e "$state" ] || sed -n "s/^$1=//p" "$state"; }

socket_of() { printf '%s/%s.sock\n' "$(field run)" "$1"; }

# A process that has ended and whose parent does not care (some containers have such an init) is gone, too.
gone() {
  local stat=""
  { read -r stat <"/proc/${1:-none}/stat"; } 2>/dev/null || true
  # After the command's name, which stands in brackets and may hold anything, comes the state.
  [[ $stat != *\)\ * || ${stat##*\) } == [ZX]* ]]
}

# The processes that carry the token, and the children of theirs that dropped it (a container's, whose environment is its own). A process
# may end while it is looked at: that what is asked of it fails is nothing worth stopping for.
processes() {
  local token run file pid
  token=$(field token)
  run=$(field run)
  [ -n "$token" ] || return 0
  {
    grep -lsaz "^NSPOOL_ENGINES=$token\$" /proc/[0-9]*/environ || true
    grep -ls "/nspool-$token/" /proc/[0-9]*/cgroup || true
    # conmon gets an environment from podman that leaves out what podman does not know, and so do the clean-ups that it starts; but they are
    # told the folder.
    grep -lsaz "^$run/" /proc/[0-9]*/cmdline | while read -r file; do
      case "$(cat "${file%/cmdline}/comm" 2>/dev/null)" in conmon | podman | runc*) printf '%s\n' "$file" ;; esac
    done || true
  } | cut -d/ -f3 | sort -u | with_children | while read -r pid; do
    gone "$pid" || printf '%s\n' "$pid"
  done
}

# Adds all descendants to the pids that it reads.
with_children() {
  local -A ours=()
  local pid parent grew=yes
  while read -r pid; do ours[$pid]=1; done
  while [ "$grew" = yes ]; do
    grew=no
    while read -r pid parent; do
      if [ -n "${ours[$parent]:-}" ] && [ -z "${ours[$pid]:-}" ]; then
        ours[$pid]=1
        grew=yes
      fi
    # The command's name stands in brackets and may hold anything; the parent is the second field after it.
    done < <(sed -nE 's/^([0-9]+) \(.*\) . ([0-9]+) .*/\1 \2/p' /proc/[0-9]*/stat 2>/dev/null)
  done
  printf '%s\n' "${!ours[@]}" | grep -v '^$' || true
}

# keep_pid NAME PID: on record, and none of this shell's jobs any more: how it ends is not worth a line.
keep_pid() {
  printf '%s=%s\n' "$1" "$2" >>"$state"
  disown "$2"
}

# Prints nothing and fills `enter`: what comes before a command that shall run in the engines' namespaces, which their holder keeps. The
# root and the folder are named again, because entering a mount namespace loses a chroot and the way back from the current folder.
enter=()
ways_in() { enter=(nsenter --net --mount --root --target "$(field holder)" -- env -C "$PWD" --); }

inside() {
  ways_in
  "${enter[@]}" "$@"
}

# within SECONDS COMMAND...: until the command succeeds, or the time is over.
within() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.1
  done
}

none_left() { [ -z "$(processes)" ]; }

end_processes() {
  local pids
  mapfile -t pids < <(processes)
  if [ "${#pids[@]}" -gt 0 ]; then kill -KILL "${pids[@]}" 2>/dev/null || true; fi
  none_left
}

# Asks the engine whose process id is in the state file to leave, if that process is still ours, and gives it the time in seconds.
ask_to_leave() {
  local pid
  pid=$(field "$1")
  if [ -n "$pid" ] && processes | grep -x "$pid" >/dev/null; then
    kill -TERM "$pid" 2>/dev/null || true
    within "$2" gone "$pid" || say "$1 did not leave within $2 s; ending it"
  fi
}

# Ends what runs, and takes away every trace but the logs. Says so if something resists, and then keeps the state for the next try.
clear_engines() {
  local run token
  run=$(field run)
  token=$(field token)
  if [ "$(field boot)" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then
    ask_to_leave podman 5
    ask_to_leave docker 20
    within 20 end_processes || fail "these processes of the private engines cannot be ended: $(processes | tr '\n' ' ')"
    # Only what is empty can be removed: another engine's control groups are not.
    find /sys/fs/cgroup -depth -type d \( -path "*/nspool-$token*" -o -path '*/libpod_parent*' \) -exec rmdir {} + 2>/dev/null || true
    clear_places
  fi
  rm -rf --one-file-system "$run" "$engines/docker" "$engines/podman" || fail "cannot remove $run and the data below $engines"
  rm -f "$state"
}

# In the new namespaces: what the engines and their helpers keep in places that no option moves becomes empty and private.
private_places=(/run/containerd /run/docker /run/netns /run/libpod /run/runc /run/crun /var/lib/cni /var/lib/containers)

# Where nothing was, folders are made to mount upon, and removed by whoever is the last one on this host (other checkouts have engines, too): a folder that is
# removed takes along what is mounted upon it elsewhere. Which were made is in this file; whoever lives in private places has it locked, shared.
places=/run/nspool-private-places

# Opens that file as 8 and locks it (flock's options in $1), unless somebody has removed it meanwhile.
lock_places() {
  while true; do
    exec 8>>"$places" || fail "cannot write $places"
    flock "$1" 8 || return 1
    if [ "$places" -ef /proc/self/fd/8 ]; then return 0; fi
  done
}

clear_places() {
  local made
  [ -e "$places" ] || return 0
  if lock_places -xn; then
    while read -r made; do rmdir --ignore-fail-on-non-empty "$made" 2>/dev/null || true; done <"$places"
    rm -f "$places"
  fi
  exec 8>&-
}

hold_namespaces() {
  ip link set lo up
  local place
  for place in "${private_places[@]}"; do mount -t tmpfs -o mode=0755 nspool "$place"; done
  : >"$1"
  exec sleep infinity
}

make_namespaces() {
  local run=$1 place
  lock_places -s
  for place in "${private_places[@]}"; do [ -d "$place" ] || printf '%s\n' "$place" >&8; done
  mkdir -p "${private_places[@]}"
  # It has the lock as long as it lives.
  NSPOOL_ENGINES=$(field token) setsid unshare --net --mount --propagation slave \
    "$BASH" "$here/setup.sh" hold "$run/held" </dev/null >"$engines/holder.log" 2>&1 9>&- &
  exec 8>&-
  keep_pid holder "$!"
  within 10 test -e "$run/held" || explain "the namespaces of their own could not be made" "$engines/holder.log"
}

# overlay2 does not work on every file system (in a container's, for one): the answer comes from a real mount in the data folder.
storage_driver() {
  local probe="$engines/probe" driver=vfs
  mkdir -p "$probe"/{lower,lower2,upper,work,merged}
  if inside mount -t overlay nspool -o "lowerdir=$probe/lower:$probe/lower2,upperdir=$probe/upper,workdir=$probe/work" \
    "$probe/merged" 2>/dev/null; then
    inside umount "$probe/merged"
    driver=overlay
  fi
  rm -rf "$probe"
  printf '%s\n' "$driver"
}

start_docker() {
  local run=$1 driver=$2 rules=true
  local bridge=${run##*/}b
  mkdir -p "$engines/docker"
  if [ "$driver" = overlay ]; then driver=overlay2; fi
  if ! inside iptables -t nat -nL >/dev/null 2>&1; then
    rules=false
    say "iptables does not work here: containers of the private Docker engine have no NAT"
  fi
  # Not docker0: every dockerd that is told of another bridge deletes it at its start, and tests start more of them in here.
  { inside ip link add "$bridge" type bridge && inside ip addr add 172.31.255.1/24 dev "$bridge" && inside ip link set "$bridge" up; } \
    || fail "the bridge of the private Docker engine could not be made"
  # A config file of its own: /etc/docker/daemon.json is the host's.
  printf '{}\n' >"$run/docker.json"
  NSPOOL_ENGINES=$(field token) setsid "${enter[@]}" \
    dockerd --config-file "$run/docker.json" --data-root "$engines/docker" --exec-root "$run/docker" --pidfile "$run/docker.pid" \
    -H "unix://$run/docker.sock" --bridge "$bridge" --iptables="$rules" --storage-driver "$driver" \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/nspool-$(field token)" \
    </dev/null >"$docker_log" 2>&1 9>&- &
  keep_pid docker "$!"
}

# podman's own limit of processes: it lowers it to the kernel's number of pids.
most_processes() {
  local limit pids
  limit=$(ulimit -Hu)
  pids=$(cat /proc/sys/kernel/pid_max)
  if [ "$limit" = unlimited ] || [ "$limit" -gt "$pids" ]; then limit=$pids; fi
  printf '%s\n' "$limit"
}

start_podman() {
  local run=$1 driver=$2
  mkdir -p "$engines/podman" "$run/podman-net"
  # The token goes into the containers' environment, because the name of their control group cannot be chosen here. runc: crun refuses a
  # host whose control groups are of both versions. The limits are those that are there: podman would raise them, and where that is refused
  # no container starts.
  cat >"$run/containers.conf" <<END
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$run/podman-tmp"
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=$(most_processes):$(most_processes)"]
env = ["NSPOOL_ENGINES=$(field token)"]
[network]
network_config_dir = "$run/podman-net"
END
  printf '[storage]\ndriver = "%s"\ngraphroot = "%s"\nrunroot = "%s"\n' "$driver" "$engines/podman" "$run/podman-run" >"$run/storage.conf"
  # As Docker does on its own: a registry on loopback may speak plain HTTP.
  printf '[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n' >"$run/registries.conf"
  NSPOOL_ENGINES=$(field token) CONTAINERS_REGISTRIES_CONF="$run/registries.conf" CONTAINERS_CONF="$run/containers.conf" CONTAINERS_STORAGE_CONF="$run/storage.conf" \
    setsid "${enter[@]}" \
    podman --root "$engines/podman" --runroot "$run/podman-run" --tmpdir "$run/podman-tmp" --storage-driver "$driver" \
    system service --time 0 "unix://$run/podman.sock" </dev/null >"$podman_log" 2>&1 9>&- &
  keep_pid podman "$!"
}

# explain WHAT LOG: ends with the log's end and what it most likely means.
explain() {
  say "$1; the end of $2:"
  tail -n 20 "$2" >&2 || true
  local why="Nothing known fits. The whole log is $2."
  if grep -qiE 'operation not permitted|permission denied|unshare failed' "$2"; then
    why="This looks like a container without the right to mount and to make namespaces: run it with --privileged, or on the host."
  elif grep -qiE 'devices cgroup|cgroup.*(not mounted|isn.t mounted|mountpoint|no such)' "$2"; then
    why="The control groups are not mounted: mount them (Debian: apt-get install cgroupfs-mount), or run on a host with systemd."
  elif grep -qi 'no space left' "$2"; then
    why="The disk that holds $engines is full."
  elif grep -qiE 'iptables|nf_tables' "$2"; then
    why="The kernel has no iptables or nftables for network namespaces: load ip_tables or nf_tables."
  fi
  clear_engines
  fail "the private engines did not start" "$why"
}

answers_or_died() { engine_answers "$1" || gone "$2"; }

# Returns when the engine answers; explains itself when it has ended, or is silent for a minute.
await_engine() {
  within 60 answers_or_died "$(socket_of "$1")" "$(field "$1")" && engine_answers "$(socket_of "$1")" \
    || explain "$2 does not answer" "$engines/$1.log"
}

# start_engines OWNER KIND...: the lock is held. Engines that somebody started by hand and that answer are used as they are.
start_engines() {
  local owner=$1 run kind driver
  shift
  [ "$(id -u)" = 0 ] || fail "the private engines need root" "Run it as root, or name your own in NSPOOL_TEST_DOCKER and NSPOOL_TEST_PODMAN."
  if [ -e "$state" ]; then
    if [ "$(field owner)" = manual ] && all_answer "$@"; then return 0; fi
    say "clearing away the private engines that an earlier run left"
    clear_engines
  fi
  # The folder's name is also what tests let their links' names begin with, and those have 15 bytes at most.
  run=$(mktemp -d /tmp/nspeXXXXX)
  printf '%s\n' "token=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')" "run=$run" "owner=$owner" "kinds=$*" \
    "boot=$(cat /proc/sys/kernel/random/boot_id)" >"$state"
  make_namespaces "$run"
  ways_in
  driver=$(storage_driver)
  for kind in "$@"; do "start_$kind" "$run" "$driver"; done
  for kind in "$@"; do await_engine "$kind" "$kind"; done
  say "private engines answer: $* (storage $driver, data in $engines)"
}

all_answer() {
  local kind
  for kind in "$@"; do engine_answers "$(socket_of "$kind")" || return 1; done
}

# Lines for `eval`: the paths of the sockets.
print_env() {
  local kind
  [ -e "$state" ] || fail "no private engines run here" "Start them: deploy/setup.sh engine start"
  for kind in $(field kinds); do printf 'export NSPOOL_TEST_%s=%s\n' "${kind^^}" "$(socket_of "$kind")"; done
  printf 'export PATH=%q:"$PATH"\n' "$tools"
}

# Not simply eval "$(print_env)": that would hide its failure.
load_env() {
  local lines
  lines=$(print_env)
  eval "$lines"
}

# with_engines "KIND..." COMMAND...: starts, runs the command among the engines with nothing to read, stops: also when the command fails,
# at Ctrl-C and when asked to end. Hands on the command's exit code.
with_engines() {
  local kinds=$1 child code=0
  shift
  lock_engines
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  trap 'finish_run' EXIT
  # shellcheck disable=SC2086 # words on purpose
  start_engines run $kinds
  load_env
  ways_in
  # A process group of its own: signals then reach the command and all that it started, and only that. The token, so that nothing of it
  # outlives the engines, even if this shell is killed.
  set -m
  NSPOOL_ENGINES=$(field token) "${enter[@]}" "$@" </dev/null 9>&- &
  child=$!
  set +m
  trap 'kill -INT -- "-$child" 2>/dev/null; wait_for "$child"; exit 130' INT
  trap 'kill -TERM -- "-$child" 2>/dev/null; wait_for "$child"; exit 143' TERM HUP
  wait "$child" || code=$?
  return "$code"
}

# The command gets half a minute to clear up after itself; then its process group is ended.
wait_for() { within 30 gone "$1" || kill -KILL -- "-$1" 2>/dev/null || true; }

finish_run() {
  trap '' INT TERM HUP
  if [ "$(field owner)" = run ]; then clear_engines; fi
}
