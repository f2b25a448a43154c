#!/usr/bin/env bash
# From an earlier daemon to this one and back, with live leases on private engines: builds the daemon of the revision that is named (without one: of
# the last tag before this commit, else of the last change of the ledger before this one), and runs tests/e2e/upgrades.rs with both. What it builds
# is kept below target/upgrade, the source is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/lib/say.sh
. deploy/lib/say.sh
cargo=${CARGO:-cargo}
work=${CARGO_TARGET_DIR:-target}/upgrade
mkdir -p "$work"
work=$(cd "$work" && pwd)

predecessor() {
  local skip=1
  git describe --tags --abbrev=0 HEAD^ 2>/dev/null && return
  # With changes that are not committed yet, the last commit is the one before.
  git diff --quiet HEAD -- src/ledger || skip=0
  git log -1 --skip="$skip" --format=%H -- src/ledger
}

# build COMMIT PROGRAM: in a target folder of its own, because cargo would take one revision's artefacts for the other's.
build() {
  # A run that was killed leaves it.
  git worktree remove --force "$work/source" 2>/dev/null || rm -rf "$work/source"
  git worktree add --quiet --force --detach "$work/source" "$1"
  trap 'git worktree remove --force "$work/source"' EXIT
  CARGO_TARGET_DIR="$work/target" "$cargo" build --locked --bin nspool --manifest-path "$work/source/Cargo.toml"
  cp "$work/target/debug/nspool" "$2.new"
  mv "$2.new" "$2"
  git worktree remove --force "$work/source"
  trap - EXIT
}

from=${1:-$(predecessor)}
commit=$(git rev-parse --verify --quiet "$from^{commit}") || fail "there is no revision ${from:-before this one} to upgrade from" \
  "Name one: make upgrade FROM=<revision>."
program="$work/nspool-$commit"
say "from $(git log -1 --format='%h (%s)' "$commit")"
[ -x "$program" ] || build "$commit" "$program"
"$cargo" test --locked --test daemon --no-run
NSPOOL_TEST_PREDECESSOR=$program deploy/setup.sh section "upgrades and downgrades" \
  deploy/setup.sh engine run "$cargo" test --locked --offline --test daemon upgrades -- --include-ignored --nocapture
