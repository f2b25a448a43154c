"""Images are ensured: followed to their end, by whoever's credentials, over a broken connection too."""

from __future__ import annotations

from typing import List

import grpc
import pytest
from fake_server import FakePool, broken, hanging, refusing

import nspool
from nspool.v1 import image_pb2


def test_an_image_is_followed_to_its_end(client: nspool.Client, pool: FakePool) -> None:
    told: List[image_pb2.FetchProgress] = []
    image = client.ensure_image("reg:5000/team/fn:1", progress=told.append)
    assert (image.id, image.fetched, image.reference) == ("sha256:1", True, "reg:5000/team/fn:1")
    assert [(step.attempt, step.layers, step.layers_done) for step in told] == [(1, 2, 1)]
    assert not pool.image_requests[0].HasField("auth"), "the daemon's own credentials are not the caller's"


def test_credentials_go_along(client: nspool.Client, pool: FakePool) -> None:
    client.ensure_image("a", username="me", password="secret")
    client.ensure_image("a", identity_token="token")
    assert [(asked.auth.username, asked.auth.password, asked.auth.identity_token) for asked in pool.image_requests] == [
        ("me", "secret", ""),
        ("", "", "token"),
    ]


def test_a_broken_connection_follows_the_same_fetch(client: nspool.Client, pool: FakePool) -> None:
    pool.script["EnsureImage"].append(broken())
    assert client.ensure_image("a").id == "sha256:1"
    assert len(pool.image_requests) == 2


def test_a_refusal_is_told(client: nspool.Client, pool: FakePool) -> None:
    pool.script["EnsureImage"].append(refusing(grpc.StatusCode.NOT_FOUND, "IMAGE_UNKNOWN"))
    with pytest.raises(nspool.Refused, match="ensure image.*IMAGE_UNKNOWN"):
        client.ensure_image("a")
    assert len(pool.image_requests) == 1


def test_a_wait_ends_at_its_time(client: nspool.Client, pool: FakePool) -> None:
    pool.script["EnsureImage"].append(hanging(0.5))
    with pytest.raises(nspool.NspoolError, match="DEADLINE_EXCEEDED"):
        client.ensure_image("a", timeout=0.1)


def test_an_end_without_an_outcome_is_told(client: nspool.Client, pool: FakePool) -> None:
    pool.script["EnsureImage"].append(lambda context, healthy: None)
    with pytest.raises(nspool.Refused, match="without an outcome"):
        client.ensure_image("a")
