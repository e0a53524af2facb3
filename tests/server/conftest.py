"""The tests of this folder need the extra `server`."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra `server`")
