"""A launcher as torchrun is one, for tests: `python -m support.launcher -n 2 COMMAND... [: -n 1 COMMAND...]`.

The environment of each process names its rank. Signals go on to rank 0. Ranks that are left ten seconds after one has
failed are killed. The launcher then says so on standard error, and its exit code is 99.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

LEFT_CODE = 99
LIMIT_SECONDS = 10.0
OTHERS = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "MPI_LOCAL", "TORCHELASTIC_", "LONGCAT_TOKEN")


def reserved_port() -> socket.socket:
    """Returns a bound socket that does not listen: no other process gets the port, and rank 0 may listen there."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a rank on one machine, and nothing of other launchers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {**kept, **{name: str(value) for name, value in told.items()}, "MASTER_ADDR": "localhost"}


def commands_of(words: list[str]) -> list[list[str]]:
    """By rank."""
    commands = []
    while words:
        end = words.index(":") if ":" in words else len(words)
        assert words[0] == "-n"
        commands += [words[2:end]] * int(words[1])
        words = words[end + 1 :]
    return commands


def main(words: list[str]) -> int:
    commands = commands_of(words)
    with reserved_port() as holder:
        port = holder.getsockname()[1]
        ranks = [
            subprocess.Popen(command, env=rank_environment(rank, len(commands), port))
            for rank, command in enumerate(commands)
        ]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: ranks[0].send_signal(number))
        failed_at = None
        while any(rank.poll() is None for rank in ranks):
            time.sleep(0.02)
            if failed_at is None and any(rank.poll() for rank in ranks):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > LIMIT_SECONDS:
                break
    left = [number for number, rank in enumerate(ranks) if rank.poll() is None]
    for number in left:
        ranks[number].kill()
        ranks[number].wait()
    codes = [rank.returncode for rank in ranks]
    if any(codes) and 0 in codes or left:
        print(f"longcat: ranks ended with {codes}, left were {left}", file=sys.stderr)
        return LEFT_CODE
    return abs(next(filter(None, codes), 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
