"""`run_with`: a start that fails because of the lease runs on the plain network; one that fails by itself fails."""

from __future__ import annotations

from typing import Callable, List, Optional

import grpc
import pytest
from fake_server import FakePool, refusing

import nspool
from nspool import Placement


class EngineError(Exception):
    """As client libraries of engines have it: with the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status_code = status


class Starter:
    """A start function that fails in leased namespaces, after `before` was done."""

    def __init__(self, error: BaseException, before: Optional[Callable[[Placement], None]] = None) -> None:
        self.error = error
        self.before = before
        self.modes: List[str] = []

    def __call__(self, placement: Placement) -> str:
        self.modes.append(placement.network_mode)
        if placement.leased:
            if self.before is not None:
                self.before(placement)
            raise self.error
        return placement.network_mode


def test_a_start_in_a_lease(client: nspool.Client, pool: FakePool) -> None:
    with client.run_with(lambda placement: placement.network_mode) as run:
        assert run.result == run.lease.network_mode and run.lease.leased and run.fallback_cause is None
        assert not pool.releases, "the lease lasts as long as the function"
    assert [r.doubtful for r in pool.releases] == [False]


def test_a_function_that_fails_later_makes_the_release_doubtful(client: nspool.Client, pool: FakePool) -> None:
    with pytest.raises(RuntimeError):
        with client.run_with(lambda placement: None):
            raise RuntimeError
    assert [r.doubtful for r in pool.releases] == [True]


def test_no_lease_means_plain_network(client: nspool.Client, pool: FakePool) -> None:
    pool.script["Allocate"].append(refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EMPTY"))
    with client.run_with(lambda placement: placement.network_mode, plain_network="slow0") as run:
        assert run.result == "slow0" and isinstance(run.fallback_cause, nspool.Refused)


@pytest.mark.parametrize("status", [404, 409])
def test_an_engine_that_finds_nobody_to_join(client: nspool.Client, pool: FakePool, status: int) -> None:
    start = Starter(EngineError(status, "no such container"))
    run = client.run_with(start)
    assert run.result == "bridge" and run.fallback_cause is start.error and len(start.modes) == 2
    assert [r.doubtful for r in pool.releases] == [True]


def test_an_error_that_names_the_namespace(client: nspool.Client) -> None:
    class Start(Starter):
        def __call__(self, placement: Placement) -> str:
            self.error = RuntimeError(f"cannot join {placement.namespace_id}")
            return super().__call__(placement)

    assert client.run_with(Start(RuntimeError())).result == "bridge"


def test_a_lease_that_was_lost_in_between(client: nspool.Client, pool: FakePool) -> None:
    start = Starter(RuntimeError("boom"), before=lambda lease: pool.lose(lease.token))
    assert client.run_with(start).result == "bridge"


def test_a_daemon_that_forgot_the_lease(client: nspool.Client, pool: FakePool) -> None:
    start = Starter(RuntimeError("boom"), before=lambda lease: pool.leases.clear())
    assert client.run_with(start).result == "bridge"


def test_a_daemon_that_went_away(client: nspool.Client, server: grpc.Server) -> None:
    start = Starter(RuntimeError("boom"), before=lambda lease: server.stop(None).wait(10) and None)
    assert client.run_with(start).result == "bridge"


def test_an_error_that_the_caller_explains(client: nspool.Client) -> None:
    start = Starter(RuntimeError("EJOIN"))
    assert client.run_with(start, explains=lambda error, lease: "EJOIN" in str(error)).result == "bridge"


def test_a_failure_of_the_function_is_its_own(client: nspool.Client, pool: FakePool) -> None:
    start = Starter(EngineError(500, "no space left on device"))
    with pytest.raises(EngineError, match="no space"):
        client.run_with(start)
    assert len(start.modes) == 1 and [r.doubtful for r in pool.releases] == [True]


def test_an_interrupt_is_not_tried_again(client: nspool.Client, pool: FakePool) -> None:
    start = Starter(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        client.run_with(start)
    assert len(start.modes) == 1 and [r.doubtful for r in pool.releases] == [True]


def test_a_failure_on_the_plain_network_is_raised(client: nspool.Client) -> None:
    def start(placement: Placement) -> None:
        raise EngineError(404, placement.network_mode)

    with pytest.raises(EngineError, match="bridge"):
        client.run_with(start)
