"""The examples run and print what they promise."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str) -> str:
    result = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "name,expected",
    [
        ("basic_chat.py", "Hello, "),
        ("tool_call.py", "model: {'role': 'assistant'"),
        ("parse_response.py", "'arguments': {'x1': 125679, 'x2': 234519}"),
        ("recommended_sampling.py", "Lily"),
        ("demo.py", "tok/s"),
    ],
)
def test_example(name, expected):
    assert expected in run(name)


def test_recommended_sampling_is_the_checkpoints_default(tiny):
    import json

    config = json.loads((Path(tiny) / "generation_config.json").read_text())
    text = (EXAMPLES / "recommended_sampling.py").read_text()
    for name in ("repetition_penalty", "temperature", "top_p", "top_k"):
        assert f"{name}={config[name]}" in text
