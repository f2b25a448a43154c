# Every way to build, try, test and install nspool. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= /usr/lib/systemd/system

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
export PATH := $(target)/tools/bin:$(PATH):/usr/sbin:/sbin
section := deploy/setup.sh section
scripts := $(wildcard deploy/*.sh) .ci/run $(wildcard clients/*/*.sh tests/*.sh tests/support/*.sh benches/*.sh)
# The daemon's tests wait more than they work: two at a time leave a fifth of two cores idle.
threads := $(shell cores=$$(nproc); echo $$((cores < 4 ? 4 : cores)))
# Written out, because cargo's --all-targets would run the benches, too.
tests := --workspace --locked --lib --bins --tests

.PHONY: help build demo test simulate interleavings soak upgrade bench lint install clean packages-test engines-stop test-rust test-clients test-rules \
        test-scripts lint-toolchain lint-scripts lint-deny

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' Makefile | expand -t 20

build: ## the release binary, target/release/nspool
	$(CARGO) build --release --locked --bin nspool

# Nothing is installed: where no engine answers, nspool makes the namespaces itself.
demo: build ## fill a pool and compare starts in leases with starts that make their own network
	@deploy/setup.sh demo $(target)/release/nspool

test: packages-test ## install what is missing, start private engines, run every test
	@$(MAKE) test-rust
	@# These wait more than they work, and know nothing of each other.
	@$(MAKE) -j2 --output-sync=target test-clients test-scripts
	@$(MAKE) test-rules lint-scripts

packages-test:
	@$(section) "packages" deploy/setup.sh packages test

# Nothing is downloaded among the engines, who have no way out.
test-rust:
	@$(section) "build of the tests" $(CARGO) test $(tests) --no-run
	@$(section) "tests of the program, with Docker and podman" \
	    deploy/setup.sh engine run $(CARGO) test $(tests) --offline --no-fail-fast -- --skip e2e::
	@$(section) "tests of the daemon, with Docker and podman" \
	    env RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$(threads)} deploy/setup.sh engine run $(CARGO) test --locked --offline --test daemon e2e::
	@$(section) "tests in the documentation" $(CARGO) test --workspace --locked --doc

test-clients:
	@$(section) "a daemon for the clients" $(CARGO) build --locked --example fake_daemon
	@for script in $(wildcard clients/*/test.sh); do \
	    NSPOOL_TEST_DAEMON=$(target)/debug/examples/fake_daemon $(section) "$$script" $$script; \
	done

test-rules:
	@$(section) "alert rules" promtool test rules deploy/prometheus/nspool.rules.test.yml

test-scripts:
	@$(section) "private engines leave nothing behind" deploy/test.sh

simulate: ## as many seeded lives of the whole daemon as SEEDS says (default 100000), on the scripted engine
	NSPOOL_SEEDS=$(or $(SEEDS),100000) $(CARGO) test --release --locked --test nanny simulation -- --nocapture

# Schedules are drawn in the same order each time: more of them go beyond those of `make test`.
interleavings: ## SCHEDULES orders of threads per story (default 100000), HISTORIES of concurrent clients (default 100)
	NSPOOL_SCHEDULES=$(or $(SCHEDULES),100000) $(CARGO) test --release --locked --lib interleavings
	NSPOOL_HISTORIES=$(or $(HISTORIES),100) $(CARGO) test --release --locked --test histories

soak: packages-test ## the real daemon and a real Docker engine under a storm of faults, for as long as MINUTES says (default 60)
	$(CARGO) test --locked --test soak --no-run
	deploy/setup.sh engine run env NSPOOL_SOAK=$$(( $(or $(MINUTES),60) * 60 )) $(CARGO) test --offline --locked --test soak -- --nocapture

upgrade: packages-test ## from the daemon of revision FROM (default: the last release) to this one and back, with live leases
	tests/upgrade.sh $(FROM)

bench: packages-test ## what the daemon costs, against an empty gRPC handler and over pool sizes, what holders see of bad days, and a renewal beside a new buddy
	$(CARGO) bench --locked --bench api --bench pool --bench daemon --bench furnish --bench inspection
	$(CARGO) bench --locked --bench engine --bench renewal --bench fresh --no-run
	deploy/setup.sh engine run $(CARGO) bench --offline --locked --bench engine --bench renewal --bench fresh

lint: lint-toolchain ## format, clippy, documentation, dependencies, scripts
	@$(section) "format" $(CARGO) fmt --all --check
	@$(section) "clippy" $(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@RUSTDOCFLAGS=-Dwarnings $(section) "documentation" $(CARGO) doc --workspace --no-deps --locked --document-private-items
	@$(MAKE) lint-deny lint-scripts

lint-toolchain:
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 \
	    || { echo "rustfmt or clippy is missing: rustup component add rustfmt clippy" >&2; exit 1; }

lint-deny:
	@$(section) "dependencies" deploy/deny.sh

lint-scripts:
	@command -v shellcheck >/dev/null || deploy/setup.sh packages test
	@$(section) "shellcheck" shellcheck -x $(scripts)

install: build ## binary, units, sample config, man pages, completions; DESTDIR= PREFIX= UNITDIR=
	deploy/install.sh "$(target)/release/nspool" "$(DESTDIR)" "$(PREFIX)" "$(UNITDIR)"

engines-stop: ## end private engines that were started by hand or left by a killed run
	deploy/setup.sh engine stop

clean: engines-stop ## remove target/, private engines included
	$(CARGO) clean
