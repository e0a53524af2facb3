"""One server for the tests that do not end it."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra `server`")


@pytest.fixture(scope="session")
def server(tiny):
    from live import LiveServer

    with LiveServer(tiny, "--served-model-name", "longcat-tiny", "tiny") as live:
        yield live
