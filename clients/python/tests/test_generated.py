"""The committed generated code is what the contract gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent


def test_the_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    subprocess.run(
        [str(HERE / "generate.sh"), str(tmp_path)], check=True, env={**os.environ, "PYTHON": sys.executable}
    )
    made = {path.name: path.read_text() for path in (tmp_path / "nspool" / "v1").iterdir()}
    kept = {path.name: path.read_text() for path in (HERE / "src/nspool/v1").glob("*_pb2*")}
    assert made.keys() == kept.keys()
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, f"run clients/python/generate.sh: {stale} are not what the contract gives"
