# shellcheck shell=bash
# What every script here says and how it fails. Sourced, never run.

# A line for the reader, on standard error: standard output belongs to what a program may read.
say() { printf 'nspool: %s\n' "$*" >&2; }

# Ends the script: the first line is what went wrong, the others what to do about it.
fail() {
  say "error: $1"
  shift
  local line
  for line in "$@"; do printf '        %s\n' "$line" >&2; done
  exit 1
}

# have COMMAND...: all of them can be found. Debian keeps dockerd, iptables and ip where an ordinary user's PATH does not look.
have() {
  local name
  for name in "$@"; do PATH="$PATH:/usr/sbin:/sbin" command -v "$name" >/dev/null 2>&1 || return 1; done
}

# engine_answers SOCKET: does an engine answer on this Unix socket? perl-base is on every Debian; curl and the docker client are not.
engine_answers() {
  [ -S "$1" ] || return 1
  perl -MIO::Socket::UNIX -e '
    $SIG{ALRM} = sub { exit 1 }; alarm 3;
    my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 1;
    print $s "GET /_ping HTTP/1.0\r\nHost: localhost\r\n\r\n" or exit 1;
    exit((<$s> // "") =~ m{^HTTP/1\.[01] 200} ? 0 : 1)' "$1" 2>/dev/null
}
