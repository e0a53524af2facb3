"""Files as the kernel shows them, below a folder that stands for /."""

from collections.abc import Mapping
from pathlib import Path


def write_system(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
