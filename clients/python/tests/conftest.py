"""A fake daemon in process, a client of it, and what a test needs to wait for something."""

from __future__ import annotations

import tempfile
import time
from typing import Callable, Iterator

import grpc
import pytest
from fake_server import FakePool

import nspool


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-daemon", action="store_true", help="test with the fake servers only")


@pytest.fixture
def endpoint() -> Iterator[str]:
    # Not in tmp_path: with the name of a test in it the path can be too long for a socket (107 bytes).
    with tempfile.TemporaryDirectory(prefix="nspool") as folder:
        yield f"unix:{folder}/n.sock"


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def server(pool: FakePool, endpoint: str) -> Iterator[grpc.Server]:
    server = pool.serve(endpoint)
    yield server
    pool.hang_up()
    server.stop(None).wait(10)


@pytest.fixture
def client(server: grpc.Server, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[nspool.Client]:
    # There is a daemon, and a lease is wanted, however busy the machine is.
    monkeypatch.setattr("nspool.client._FALLBACK_TIMEOUT", 10.0)
    with nspool.Client(endpoint, owner="agent") as client:
        yield client


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Waits until `condition` holds; fails, naming `what`, when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(0.005)
