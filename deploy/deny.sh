#!/usr/bin/env bash
# Asks cargo-deny about licences, banned crates and sources, and about known weaknesses when their database can be had. Installs cargo-deny
# below target/ if it is not there: built without optimisation, which takes half the time and checks just as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v cargo-deny >/dev/null; then
  printf 'cargo-deny is not there: building it into %s/tools\n' "${CARGO_TARGET_DIR:-target}"
  cargo install cargo-deny --locked --debug --config 'profile.dev.debug=0' --quiet --root "${CARGO_TARGET_DIR:-target}/tools" --target-dir "${CARGO_TARGET_DIR:-target}/tools/build"
  rm -rf "${CARGO_TARGET_DIR:-target}/tools/build"
fi

# Told apart from a finding: only a database that is there is asked.
if timeout 60 cargo deny --log-level off fetch db </dev/null 2>/dev/null; then
  cargo deny --log-level error check --hide-inclusion-graph advisories licenses bans sources
else
  printf 'The advisory database cannot be fetched from here: known weaknesses are not checked.\n'
  cargo deny --log-level error check --hide-inclusion-graph licenses bans sources
fi
