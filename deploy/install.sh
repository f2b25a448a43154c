#!/usr/bin/env bash
# install.sh PROGRAM DESTDIR PREFIX UNITDIR: lays nspool out in the file system as a package would. Enables and starts nothing; a config
# file that is already there stays as it is.
set -euo pipefail
[ "$#" -eq 4 ] || { printf 'usage: install.sh PROGRAM DESTDIR PREFIX UNITDIR\n' >&2 && exit 64; }
program=$1 root=$2 prefix=$2$3 units=$2$4
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install -Dm0755 "$program" "$prefix/bin/nspool"
install -Dm0644 -t "$units" systemd/*.service systemd/*.socket
# The units name the place of a packaged binary.
sed -i "s,/usr/bin/nspool,$3/bin/nspool,g" "$units"/nspool*.service
if [ ! -e "$root/etc/nspool/nspool.toml" ]; then install -Dm0644 systemd/nspool.toml "$root/etc/nspool/nspool.toml"; fi
install -Dm0644 deploy/nspool.sysusers.conf "$root/usr/lib/sysusers.d/nspool.conf"
install -Dm0644 -t "$prefix/share/nspool" deploy/prometheus/nspool.rules.yml systemd/nspool.toml systemd/managed-networks.conf systemd/native.conf \
    systemd/native-pid.conf systemd/native-user.conf systemd/cni.conf

install -d "$prefix/share/man/man1"
"$program" man "$prefix/share/man/man1"
completions() { install -Dm0644 /dev/stdin "$prefix/share/$2" < <("$program" completions "$1"); }
completions bash bash-completion/completions/nspool
completions zsh zsh/site-functions/_nspool
completions fish fish/vendor_completions.d/nspool.fish

printf 'installed below %s. Next: systemd-sysusers && systemctl daemon-reload && systemctl enable --now nspool\n' "${root:-/}"
