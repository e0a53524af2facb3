"""Fixtures shared by all tests. Helpers are in support/ and reference/, which tests import by name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny() -> str:
    """The trained example checkpoint."""
    return str(ROOT / "examples" / "longcat-tiny")


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> str:
    """A random checkpoint of the architecture in its small default shape, f32."""
    from support.checkpoints import make_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, seed=3)
    return str(folder)


@pytest.fixture(scope="session")
def server(tiny):
    """One running server, for tests that do not end it."""
    pytest.importorskip("fastapi", reason="needs the extra `server`")
    from support.live import LiveServer

    with LiveServer(tiny, "--served-model-name", "longcat-tiny", "tiny") as live:
        yield live
