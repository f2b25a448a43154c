"""Leases are got and given back; and a start gets the plain network whenever there is none."""

from __future__ import annotations

import socket
import threading
import time

import grpc
import pytest
from conftest import wait_for
from fake_server import FakePool, broken, hanging, refusing

import nspool
from nspool import ReleaseOutcome


def test_a_lease_has_what_a_container_create_needs(client: nspool.Client, pool: FakePool) -> None:
    lease = client.allocate(tenant="acme", network="bridge", labels={"k": "v"}, wait=0.5)
    assert lease.leased and lease.network_mode == f"container:{lease.namespace_id}"
    assert lease.host_config["HostConfig"]["NetworkMode"] == lease.network_mode
    assert lease.host_config["Labels"] == {"nspool.namespace_id": lease.namespace_id}
    assert (lease.owner, lease.tenant, lease.labels) == ("agent", "acme", {"k": "v"})
    assert pool.requests[0].wait.ToMilliseconds() == 500
    assert lease.token and lease.token not in repr(lease)


def test_the_authority_is_one_that_h2_accepts(endpoint: str) -> None:
    # A grpc server in Python hides the authority, so this one reads the bytes: C-core does not compress header values.
    with socket.socket(socket.AF_UNIX) as listener, nspool.Client(endpoint) as client:
        listener.bind(endpoint[len("unix:") :])
        listener.listen()
        caller = threading.Thread(target=client.allocate_or_fallback, kwargs={"timeout": 10.0})
        caller.start()
        connection, _ = listener.accept()
        connection.settimeout(10)
        connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # Empty SETTINGS: a client sends no call before.
        received = b""
        while b"/nspool.v1.NamespacePool/Allocate" not in received or b":authority" not in received:
            received += connection.recv(65536)
        connection.close()
        listener.close()
        caller.join()
    assert b"localhost" in received and b"n.sock" not in received


def test_merge_keeps_what_the_create_body_had(client: nspool.Client) -> None:
    body = {"Image": "i", "Labels": {"a": "b"}, "HostConfig": {"Memory": 1, "CapDrop": ["SYS_TIME"], "NetworkMode": "x"}}
    lease = client.allocate()
    merged = lease.merge_into(body)
    assert merged["Image"] == "i" and merged["HostConfig"]["Memory"] == 1
    assert merged["HostConfig"]["CapDrop"] == ["SYS_TIME", "NET_RAW"]
    assert merged["HostConfig"]["NetworkMode"] == lease.network_mode
    assert merged["Labels"] == {"a": "b", "nspool.namespace_id": lease.namespace_id}
    assert body["HostConfig"]["NetworkMode"] == "x", "the caller's body is left alone"
    assert nspool.PlainNetwork("bridge").merge_into(body)["HostConfig"]["NetworkMode"] == "bridge"


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL])
def test_a_lost_answer_is_asked_for_again_with_the_same_request(
    client: nspool.Client, pool: FakePool, code: grpc.StatusCode
) -> None:
    pool.script["Allocate"].extend([broken(code), broken(code)])
    client.allocate(wait=0.1)
    assert len(pool.requests) == 3
    assert len({request.SerializeToString(deterministic=True) for request in pool.requests}) == 1
    assert pool.requests[0].request_id and len(pool.leases) == 1, "one call, one lease"


def test_two_allocations_are_two_requests(client: nspool.Client, pool: FakePool) -> None:
    assert client.allocate().token != client.allocate().token
    assert client.allocate(request_id="mine").token == client.allocate(request_id="mine").token


def test_allocate_waits_for_a_daemon_that_restarts(pool: FakePool, endpoint: str) -> None:
    with nspool.Client(endpoint) as client:
        server = []
        timer = threading.Timer(0.4, lambda: server.append(pool.serve(endpoint)))
        timer.start()
        assert client.allocate(timeout=10).leased
        timer.join()
        server[0].stop(None).wait(10)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_EMPTY"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA"),
        (grpc.StatusCode.UNAVAILABLE, "STARTING"),
        (grpc.StatusCode.UNAVAILABLE, "ENGINE_AWAY"),
        (grpc.StatusCode.FAILED_PRECONDITION, "CORDONED"),
        (grpc.StatusCode.INTERNAL, "SOMETHING_NEW"),
        (grpc.StatusCode.UNIMPLEMENTED, ""),
    ],
)
def test_a_refusal_leads_to_the_plain_network_at_once(
    client: nspool.Client, pool: FakePool, code: grpc.StatusCode, reason: str
) -> None:
    pool.script["Allocate"].append(refusing(code, reason, 1.5))
    plain = client.allocate_or_fallback("slow0")
    assert not plain.leased and plain.network_mode == "slow0"
    assert isinstance(plain.cause, nspool.Refused) and plain.cause.code is code
    assert plain.cause.reason == reason and plain.cause.retry_after == 1.5
    assert len(pool.requests) == 1, "what the daemon answered stands"
    assert plain.release().outcome is ReleaseOutcome.NOT_LEASED


@pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED])
def test_a_mistake_of_the_caller_is_raised(client: nspool.Client, pool: FakePool, code: grpc.StatusCode) -> None:
    pool.script["Allocate"].append(refusing(code, "BAD_FIELD"))
    with pytest.raises(nspool.CallerMistake, match="BAD_FIELD"):
        client.allocate_or_fallback()


def test_no_daemon_costs_a_start_next_to_nothing(endpoint: str) -> None:
    with nspool.Client(endpoint) as client:
        begin = time.monotonic()
        plain = client.allocate_or_fallback("bridge")
        assert time.monotonic() - begin < 2.0
        assert plain.network_mode == "bridge" and isinstance(plain.cause, nspool.Unreachable)
        assert endpoint in str(plain.cause)
        with pytest.raises(nspool.Unreachable):
            client.allocate(timeout=0.3)


def test_a_daemon_that_hangs_is_given_up_in_time(client: nspool.Client, pool: FakePool) -> None:
    pool.script["Allocate"].append(hanging(3))
    begin = time.monotonic()
    plain = client.allocate_or_fallback(timeout=0.2)
    assert not plain.leased and time.monotonic() - begin < 2.0
    assert plain.cause.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_an_answer_that_is_no_lease_is_no_lease(client: nspool.Client, pool: FakePool) -> None:
    def garbled(context: grpc.ServicerContext, healthy: object) -> object:
        answer = healthy()  # type: ignore[operator]
        answer.lease.host_config = "{"
        return answer

    pool.script["Allocate"].append(garbled)
    assert not client.allocate_or_fallback().leased


def test_a_repeated_request_whose_lease_was_lost_gives_no_lease(client: nspool.Client, pool: FakePool) -> None:
    pool.lose(client.allocate(request_id="r").token)
    with pytest.raises(nspool.Refused, match="LEASE_LOST"):
        client.allocate(request_id="r")
    assert pool.releases[-1].doubtful


def test_a_closed_client_gives_the_plain_network(client: nspool.Client) -> None:
    lease = client.allocate()
    client.close()
    assert not client.allocate_or_fallback().leased
    assert lease.release().outcome is ReleaseOutcome.NOT_DELIVERED
    with pytest.raises(ValueError):
        client.on_lost(lambda lost: None)


def test_the_end_of_a_with_block_releases(client: nspool.Client, pool: FakePool) -> None:
    with client.allocate() as lease:
        assert not pool.releases
    assert [(r.token, r.doubtful) for r in pool.releases] == [(lease.token, False)]
    assert lease.release().outcome is ReleaseOutcome.ALREADY_RELEASED and len(pool.releases) == 1
    assert client.held() == {}


def test_an_exception_in_a_with_block_makes_the_release_doubtful(client: nspool.Client, pool: FakePool) -> None:
    with pytest.raises(KeyboardInterrupt):
        with client.allocate():
            raise KeyboardInterrupt
    assert [r.doubtful for r in pool.releases] == [True]


def test_who_knows_better_says_so(client: nspool.Client, pool: FakePool) -> None:
    with pytest.raises(RuntimeError):
        with client.allocate() as lease:
            lease.release(doubtful=False)
            raise RuntimeError
    marked = client.allocate()
    marked.mark_doubtful()
    marked.release()
    assert [r.doubtful for r in pool.releases] == [False, True]


def test_a_release_is_repeated_when_its_answer_is_lost(client: nspool.Client, pool: FakePool) -> None:
    lease = client.allocate()
    pool.script["Release"].append(broken())
    assert lease.release(doubtful=True).outcome is ReleaseOutcome.ALREADY_RELEASED
    assert [r.doubtful for r in pool.releases] == [True, True]


def test_a_release_that_nobody_hears_does_not_raise(
    client: nspool.Client, pool: FakePool, server: grpc.Server, endpoint: str
) -> None:
    lease = client.allocate()
    pool.leases.clear()
    assert lease.release().outcome is ReleaseOutcome.UNKNOWN
    other = client.allocate()
    server.stop(None).wait(10)
    outcome = other.release(timeout=0.3)
    assert outcome.outcome is ReleaseOutcome.NOT_DELIVERED and isinstance(outcome.error, nspool.Unreachable)
    again = pool.serve(endpoint)
    wait_for(lambda: other.release().outcome is ReleaseOutcome.RETURNED, "the release reaches the new daemon")
    again.stop(None).wait(10)


def test_resume_gives_all_leases_of_the_owner(client: nspool.Client, pool: FakePool, endpoint: str) -> None:
    mine = {client.allocate().token, client.allocate().token}
    with nspool.Client(endpoint, owner="other") as other:
        other.allocate()
    pool.script["Resume"].append(broken())
    with nspool.Client(endpoint, owner="agent") as restarted:
        leases = restarted.resume()
        assert {lease.token for lease in leases} == mine
        assert leases[0].release().outcome is ReleaseOutcome.RETURNED
    with nspool.Client(endpoint) as nameless, pytest.raises(ValueError, match="owner"):
        nameless.resume()


def test_renew_and_keep_alive(client: nspool.Client, pool: FakePool) -> None:
    lease = client.allocate(lifetime="ttl", ttl=30)
    assert pool.requests[0].ttl.seconds == 30 and lease.remaining == 30
    assert lease.renew(ttl=45) == 45
    client.keep_alive(interval=0.02)
    joined = client.allocate()
    wait_for(lambda: pool.renewals.count(lease.token) >= 4, "the lease is renewed again and again")
    assert joined.token not in pool.renewals, "only leases with a ttl are renewed"
    lost = []
    client.on_lost(lost.append)
    pool.lose(lease.token, tell=False)
    wait_for(lambda: lost != [], "keep-alive tells of a loss")
    assert lost[0].lease is lease and lease.state is nspool.LeaseState.LOST


def test_keep_alive_sees_a_short_ttl_that_comes_later(client: nspool.Client, pool: FakePool) -> None:
    client.keep_alive()
    lease = client.allocate(lifetime="ttl", ttl=0.3)
    wait_for(lambda: pool.renewals.count(lease.token) >= 3, "three renewals", timeout=3)


def test_close_joins_the_threads(client: nspool.Client) -> None:
    before = set(threading.enumerate())
    client.on_lost(lambda lost: None)
    client.keep_alive()
    started = [t for t in threading.enumerate() if t.name.startswith("nspool-")]
    assert len(started) == 2
    client.close()
    assert not any(t.is_alive() for t in started), before
    client.close()
