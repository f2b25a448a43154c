"""The examples of the README run as they stand, against the fake server and a stand-in for the Docker SDK."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any, Dict, List

import pytest
from fake_server import FakePool

import nspool

README = Path(__file__).resolve().parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


class FakeDocker:
    """The few calls of docker.APIClient that the README makes, with their real names and parameters."""

    created: List[Dict[str, Any]] = []

    def create_container(self, image: str, command: List[str], host_config: Any, labels: Any) -> Dict[str, str]:
        self.created.append({"image": image, "host_config": host_config, "labels": labels})
        return {"Id": "c1"}

    def start(self, container: str) -> None: ...

    def wait(self, container: str) -> None: ...

    def remove_container(self, container: str, force: bool = False) -> None: ...


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(
    number: int, server: Any, pool: FakePool, endpoint: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    docker = types.ModuleType("docker")
    docker.APIClient = FakeDocker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "docker", docker)
    monkeypatch.setenv("NSPOOL_ENDPOINT", endpoint)
    monkeypatch.setattr("nspool.client._FALLBACK_TIMEOUT", 10.0)
    FakeDocker.created.clear()
    example = EXAMPLES[number].replace(nspool.DEFAULT_ENDPOINT, endpoint)
    exec(compile(example, f"README.md example {number}", "exec"), {"__name__": "example"})
    assert "container:nspool-fake-" in capsys.readouterr().out
    assert [release.doubtful for release in pool.releases] == [False]
    if number == 0:
        assert FakeDocker.created[0]["host_config"]["NetworkMode"].startswith("container:nspool-fake-")
