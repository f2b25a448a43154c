"""No function start fails because the daemon is killed: workers start functions while it dies again and again.

Runs against the fake server in a process of its own, and against the daemon that NSPOOL_TEST_DAEMON names.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
from conftest import wait_for

import nspool

WORKERS = 8
KILLS = 4
FAKE = [sys.executable, str(Path(__file__).with_name("fake_server.py"))]


class Daemon:
    """A daemon in a process of its own, on one endpoint, that is killed and started again."""

    def __init__(self, command: List[str], endpoint: str, log: Path) -> None:
        self.command = command + [endpoint]
        self.endpoint = endpoint
        self.log = log
        self.process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.endpoint[len("unix:") :]) == 0

    def wait_until_it_grants(self) -> None:
        """A broken daemon is a failure that shows its own words, never a skip."""
        deadline = time.monotonic() + 30
        with nspool.Client(self.endpoint) as client:
            while True:
                try:
                    client.allocate(timeout=1).release()
                    return
                except nspool.NspoolError as error:
                    assert self.process is not None
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f"{shlex.join(self.command)} grants nothing: {error}\n{self.log.read_text()}")
                time.sleep(0.02)


@pytest.fixture(params=["fake", "daemon"])
def daemon(request: pytest.FixtureRequest, endpoint: str, tmp_path: Path) -> Iterator[Daemon]:
    command = FAKE
    if request.param == "daemon":
        if "NSPOOL_TEST_DAEMON" in os.environ:
            command = shlex.split(os.environ["NSPOOL_TEST_DAEMON"])
        elif request.config.getoption("--without-daemon"):
            pytest.skip("--without-daemon")
        else:
            pytest.fail("NSPOOL_TEST_DAEMON is not set: name a daemon to test with, or say --without-daemon")
    daemon = Daemon(command, endpoint, tmp_path / "daemon.log")
    daemon.start()
    try:
        daemon.wait_until_it_grants()
        yield daemon
    finally:
        daemon.kill()


class Load:
    """Workers that start functions as fast as they can, and count where those run."""

    def __init__(self, client: nspool.Client) -> None:
        self.client = client
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.pooled = 0
        self.plain = 0
        self.slowest = 0.0
        self.failures: List[BaseException] = []
        self.threads = [threading.Thread(target=self._work) for _ in range(WORKERS)]

    @staticmethod
    def start_function(placement: nspool.Placement) -> str:
        """A start as an engine does it: takes the mode, or refuses."""
        mode = placement.network_mode
        if mode != "bridge" and not mode.startswith("container:nspool-"):
            raise AssertionError(f"no engine starts a container with network mode {mode!r}")
        return mode

    def _work(self) -> None:
        while not self.stop.is_set():
            begin = time.monotonic()
            try:
                with self.client.run_with(self.start_function) as run:
                    took = time.monotonic() - begin
                    with self.lock:
                        self.pooled += run.lease.leased
                        self.plain += not run.lease.leased
                        self.slowest = max(self.slowest, took)
                    self.stop.wait(0.002)  # The function runs.
            except BaseException as error:
                self.failures.append(error)
                return

    def more(self, what: str, count: int) -> None:
        """Waits until `count` more functions ran there."""
        target = getattr(self, what) + count
        wait_for(lambda: getattr(self, what) >= target or bool(self.failures), f"{count} more {what} starts", 40)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a worker hangs"


def test_no_start_fails_when_the_daemon_is_killed(daemon: Daemon) -> None:
    lost: List[nspool.LostLease] = []
    with nspool.Client(daemon.endpoint, owner="load") as client:
        client.on_lost(lost.append)
        with Load(client) as load:
            for _ in range(KILLS):
                load.more("pooled", 20)
                daemon.kill()
                load.more("plain", WORKERS)
                daemon.start()
            load.more("pooled", 20)
        assert load.failures == []
        assert load.pooled >= 20 * (KILLS + 1) and load.plain >= WORKERS * KILLS
        print(f"{load.pooled} in the pool, {load.plain} on the bridge, slowest start {load.slowest * 1000:.0f} ms")
        assert load.slowest < 10


def test_no_start_fails_when_the_daemon_freezes(daemon: Daemon) -> None:
    with nspool.Client(daemon.endpoint, owner="load") as client, Load(client) as load:
        load.more("pooled", 20)
        daemon.signal(signal.SIGSTOP)
        load.more("plain", WORKERS)
        daemon.signal(signal.SIGCONT)
        load.more("pooled", 20)
    assert load.failures == []


def answers(client: nspool.Client) -> bool:
    try:
        client.info(timeout=0.2)
    except nspool.Unreachable:
        return False
    return True


def test_a_daemon_that_comes_back_is_reached_soon(daemon: Daemon) -> None:
    daemon.kill()
    with nspool.Client(daemon.endpoint) as client:
        assert not answers(client) and not client.allocate_or_fallback().leased
        daemon.start()
        # Asked without grpc, which is what is on trial.
        wait_for(daemon.listens, "the daemon listens")
        begin = time.monotonic()
        wait_for(lambda: answers(client), "an answer")
        assert time.monotonic() - begin < 4.5, "grpcio before 1.80 needs five seconds"
