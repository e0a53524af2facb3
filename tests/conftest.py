"""Fixtures shared by all tests. Helpers are in support/ and reference/, which tests import by name."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ["XDG_CONFIG_HOME"] = os.devnull  # the tests run without the developer's own settings
# A shell's background jobs ignore it, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


def pytest_addoption(parser: pytest.Parser) -> None:
    # As --durations-file=PATH: before this file is read, PATH in an argument of its own would be taken for a test file.
    parser.addoption("--durations-file", help="write the 25 slowest tests and the seconds of each folder to this file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Writes --durations-file. Under pytest-xdist this runs once, with the reports of all workers."""
    if not (path := config.getoption("--durations-file")):
        return
    tests: dict[str, float] = {}
    folders: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tests[report.nodeid] = tests.get(report.nodeid, 0) + report.duration
                folder = str(Path(report.nodeid.split("::")[0]).parent)
                folders[folder] = folders.get(folder, 0) + report.duration
    lines = ["seconds  folder"]
    lines += [f"{seconds:7.1f}  {name}" for name, seconds in sorted(folders.items(), key=lambda row: -row[1])]
    lines += ["", "seconds  test, with the fixtures it set up"]
    lines += [f"{seconds:7.1f}  {name}" for name, seconds in sorted(tests.items(), key=lambda row: -row[1])[:25]]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
