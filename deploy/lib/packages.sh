# shellcheck shell=bash
# What must be on the machine: asks for commands, not for packages, so that an engine or a Go that came from elsewhere is left alone.
# Nothing is ever removed, upgraded, started or enabled. Sourced, never run.

# Lines of "what to look for | package". A name is a command, a path is a file; `python3-venv` is a question of its own.
needed_by_test() {
  cat <<'END'
dockerd | docker.io
iptables | iptables
ip | iproute2
nft | nftables
runc | runc
crun | crun
ctr | containerd
jq | jq
ipset | ipset
podman | podman
/usr/lib/cni/bridge | containernetworking-plugins
busybox | busybox-static
htpasswd | apache2-utils
openssl | openssl
go | golang-go
/usr/share/gocode/src/google.golang.org/grpc/clientconn.go | golang-google-grpc-dev
/usr/share/gocode/src/github.com/golang/protobuf/proto/lib.go | golang-github-golang-protobuf-1-3-dev
protoc | protobuf-compiler
/usr/share/doc/protoc-gen-go-1-3 | protoc-gen-go-1-3
python3-venv | python3-venv
aarch64-linux-gnu-gcc | gcc-aarch64-linux-gnu
shellcheck | shellcheck
systemd-analyze | systemd
strace | strace
/bin/kill | procps
END
}

# Lines of "command | package": single programs out of packages whose installation would bring services, or hundreds of megabytes that no
# test needs. They are unpacked into target/tools/bin and nothing of the package is installed.
unpacked_for_test() {
  cat <<'END'
docker-registry | docker-registry
promtool | prometheus
qemu-aarch64-static | qemu-user-static
END
}

is_there() {
  case "$1" in
    python3-venv) python3 -c 'import ensurepip, venv' >/dev/null 2>&1 ;;
    /*) [ -e "$1" ] ;;
    *) have "$1" ;;
  esac
}

# Reads "what | package" lines and prints the packages of what is missing, without repetition.
missing_of() {
  local what package
  while IFS=' |' read -r what package; do
    is_there "$what" || printf '%s\n' "$package"
  done | sort -u
}

# may_be_root WHAT FOR: said before anything is tried, because apt-get's own words about it help nobody.
may_be_root() {
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null \
    || fail "$1 needs root" "You are not root, and sudo is not there or wants a password. Run this as root, or install the packages yourself."
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n -- "$@"; fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2; }

# The lock on the package lists, unlike dpkg's, is not waited for by apt-get itself.
apt_update() {
  local tries=0 said
  until said=$(apt update 2>&1); do
    tries=$((tries + 1))
    if [[ $said != *lock* ]] || [ "$tries" -ge 30 ]; then
      printf '%s\n' "$said" >&2
      fail "apt-get update failed; what it said stands above"
    fi
    say "another apt is at work; trying again in 10 s ($tries of 30)"
    sleep 10
  done
}

# While packages are installed, invoke-rc.d is told to start nothing. A policy that is already there is somebody's decision and stays.
policy=/usr/sbin/policy-rc.d
policy_mark='# nspool: put here while packages are installed, removed afterwards'

forbid_services() {
  [ ! -e "$policy" ] || return 0
  printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" | as_root tee "$policy" >/dev/null
  as_root chmod 0755 "$policy"
}

allow_services() {
  if grep -qsF "$policy_mark" "$policy"; then as_root rm -f "$policy"; fi
}

# A Debian package enables its units for the next boot, policy or not. Those of packages that came just now are switched off again.
disable_units_of() {
  [ -d /run/systemd/system ] || return 0
  local unit
  dpkg -L "$@" | sed -nE 's,^/(usr/)?lib/systemd/system/([^/@]+\.(service|socket|timer))$,\2,p' | sort -u | while read -r unit; do
    if [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ]; then
      as_root systemctl --quiet disable "$unit"
      say "left off: $unit (switch it on with: systemctl enable --now $unit)"
    fi
  done
}

installed() { dpkg-query -W -f '${binary:Package} ${db:Status-Status}\n' | sed -n 's/ installed$//p' | sort; }

install_packages() {
  local before new
  before=$(installed)
  # A run that was killed may have left its policy behind.
  allow_services
  trap allow_services EXIT
  forbid_services
  # --no-remove: what is on this machine stays, even if that means that this fails.
  apt install -y --no-install-recommends --no-remove "$@" \
    || fail "apt-get could not install: $*" "What it said stands above. If it wanted to remove something, install these packages by hand."
  allow_services
  trap - EXIT
  mapfile -t new < <(comm -13 <(printf '%s\n' "$before") <(installed))
  if [ "${#new[@]}" -gt 0 ]; then disable_units_of "${new[@]}"; fi
}

# unpack_program COMMAND PACKAGE: the one program out of the package, into $tools.
unpack_program() {
  local work
  work=$(mktemp -d)
  # apt drops to the user _apt for the download, who must be able to write here.
  chmod 0777 "$work"
  (cd "$work" && apt-get -qq download "$2" </dev/null >&2) || fail "apt-get could not download $2"
  mkdir -p "$tools"
  dpkg-deb --fsys-tarfile "$work/$2"_*.deb | tar -xO "./usr/bin/$1" >"$tools/.$1"
  chmod 0755 "$tools/.$1"
  mv "$tools/.$1" "$tools/$1"
  rm -rf "$work"
}

# packages test
packages() {
  local -a missing programs
  local what package
  mapfile -t missing < <("needed_by_$1" | missing_of)
  mapfile -t programs < <(if [ "$1" = test ]; then unpacked_for_test | missing_of; fi)
  if [ "${#missing[@]}" -eq 0 ] && [ "${#programs[@]}" -eq 0 ]; then return 0; fi
  have apt-get dpkg-query || fail "missing on this machine: ${missing[*]} ${programs[*]}" \
    "These are names of Debian packages, and there is no apt-get here. Install their programs in your system's own way and run this again."
  if [ "${#missing[@]}" -gt 0 ]; then say "installing with apt-get: ${missing[*]} (their services are not started)"; fi
  if [ "${#programs[@]}" -gt 0 ]; then say "unpacking one program each, without installing, into $tools: ${programs[*]}"; fi
  may_be_root "installing packages"
  apt_update
  if [ "${#missing[@]}" -gt 0 ]; then install_packages "${missing[@]}"; fi
  if [ "${#programs[@]}" -gt 0 ]; then
    unpacked_for_test | while IFS=' |' read -r what package; do
      is_there "$what" || unpack_program "$what" "$package"
    done
  fi
}
