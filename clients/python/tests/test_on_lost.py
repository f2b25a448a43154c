"""`on_lost`: each loss of this owner is told once, over lost connections, resets and forgetful daemons."""

from __future__ import annotations

import threading
from typing import Iterator, List

import grpc
import pytest
from conftest import wait_for
from fake_server import FakePool

import nspool


@pytest.fixture
def lost(client: nspool.Client, pool: FakePool) -> Iterator[List[nspool.LostLease]]:
    told: List[nspool.LostLease] = []
    client.on_lost(told.append)
    wait_for(lambda: len(pool.watch_requests) == 1, "the watch begins")
    yield told


def reconnected(pool: FakePool, times: int) -> None:
    wait_for(lambda: len(pool.watch_requests) >= times, f"{times} watch calls")


def test_a_loss_is_told(client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease]) -> None:
    lease = client.allocate()
    pool.lose(lease.token, "the buddy died")
    wait_for(lambda: len(lost) == 1, "the loss is told")
    assert lost[0].lease is lease and lost[0].cause == "the buddy died"
    assert lease.state is nspool.LeaseState.LOST
    assert pool.watch_requests == [None]


def test_losses_of_others_are_not_told(
    client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease], endpoint: str
) -> None:
    with nspool.Client(endpoint, owner="other") as other:
        theirs = other.allocate()
    dropped = client.allocate().token
    pool.lose(theirs.token)
    pool.lose(dropped)
    wait_for(lambda: len(lost) == 1, "the own loss is told")
    assert lost[0].lease is None, "the object is gone, but the owner is the same"


def test_a_reconnect_goes_on_from_the_position(
    client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease]
) -> None:
    first, second = client.allocate(), client.allocate()
    pool.lose(first.token)
    wait_for(lambda: len(lost) == 1, "the first loss")
    with pool.lock:
        pool.hang_up()
        pool.lose(second.token, tell=False)
    wait_for(lambda: len(lost) == 2, "the loss while nobody listened")
    assert pool.watch_requests[1] in (1, 2) and [entry.lease for entry in lost] == [first, second]


def test_a_reset_brings_what_was_missed_and_nothing_twice(
    client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease]
) -> None:
    first, second, third = client.allocate(), client.allocate(), client.allocate()
    pool.lose(first.token)
    wait_for(lambda: len(lost) == 1, "the first loss")
    with pool.lock:
        pool.hang_up()
        pool.lose(second.token, tell=False)
        pool.forgotten_before = 1000
    reconnected(pool, 2)
    wait_for(lambda: len(lost) == 2, "the loss that only the snapshot shows")
    pool.lose(third.token)
    wait_for(lambda: len(lost) == 3, "the loss after the snapshot")
    assert [entry.lease for entry in lost] == [first, second, third]


def test_a_daemon_that_forgot_all_leases(
    client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease]
) -> None:
    lease = client.allocate()
    with pool.lock:
        pool.leases.clear()
        pool.forgotten_before = 1000
        pool.hang_up()
    wait_for(lambda: len(lost) == 1, "the forgotten lease is told as lost")
    assert lost[0].lease is lease


def test_a_lease_that_ended_is_not_lost(client: nspool.Client, pool: FakePool, lost: List[nspool.LostLease]) -> None:
    ended, other = client.allocate(), client.allocate()
    with pool.lock:
        pool.leases[ended.token].state = nspool.LeaseState.ENDED
        pool.forgotten_before = 1000
        pool.hang_up()
    wait_for(lambda: ended.lease_id not in client.held(), "the ended lease is forgotten")
    pool.lose(other.token)
    wait_for(lambda: len(lost) == 1, "the other loss")
    assert lost[0].lease is other


def test_what_was_lost_before_is_told(client: nspool.Client, pool: FakePool) -> None:
    lease = client.allocate()
    pool.lose(lease.token)
    told: List[nspool.LostLease] = []
    client.on_lost(told.append)
    wait_for(lambda: len(told) == 1, "the earlier loss")


def test_a_daemon_that_comes_back(
    client: nspool.Client, pool: FakePool, server: grpc.Server, endpoint: str, lost: List[nspool.LostLease]
) -> None:
    lease = client.allocate()
    pool.hang_up()
    server.stop(None).wait(10)
    again = pool.serve(endpoint)
    reconnected(pool, 2)
    pool.lose(lease.token)
    wait_for(lambda: len(lost) == 1, "a loss told by the new daemon")
    pool.hang_up()
    again.stop(None).wait(10)


def test_a_callback_that_fails_stops_nothing(client: nspool.Client, pool: FakePool) -> None:
    told: List[nspool.LostLease] = []

    def failing(lost: nspool.LostLease) -> None:
        raise RuntimeError("the callback's own trouble")

    client.on_lost(failing)
    client.on_lost(told.append)
    for lease in [client.allocate(), client.allocate()]:
        pool.lose(lease.token)
    wait_for(lambda: len(told) == 2, "both losses")


def test_a_callback_may_close_the_client(client: nspool.Client, pool: FakePool) -> None:
    closed = threading.Event()

    def close(lost: nspool.LostLease) -> None:
        client.close()
        closed.set()

    client.on_lost(close)
    lease = client.allocate()
    pool.lose(lease.token)
    assert closed.wait(10)
