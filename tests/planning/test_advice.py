"""The end of `longcat plan`: the command that makes a checkpoint fit, tried with less memory than there is."""

import json
import shlex

import longcat._core as _core
import pytest
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.cli import make_parser
from longcat.planning.advice import advise, converted_weights
from longcat.planning.plan import plan

OPTIONS = {"kv_cache_memory": "1MB", "max_num_seqs": 1}


def planned(model, available, monkeypatch, **options):
    monkeypatch.setattr(_core, "available_memory", lambda: available)
    return plan(model, bandwidth=1e9, num_tokens=100_000, **options)


def test_what_fits_gets_the_line_that_serves_it(tiny, monkeypatch):
    made = planned(tiny, 10**9, monkeypatch, **OPTIONS)
    advice = advise(made, OPTIONS)
    assert advice.commands == (f"longcat serve {tiny} --kv-cache-memory 1MB --max-num-seqs 1",)
    make_parser(["serve"]).parse_args(shlex.split(advice.commands[0])[1:])


@pytest.mark.parametrize("preset", ["int8", "int4"])
def test_the_weights_after_a_conversion_are_told_to_a_tenth(tiny, tmp_path, monkeypatch, preset):
    made = planned(tiny, 10**9, monkeypatch, **OPTIONS)
    convert_checkpoint(tiny, tmp_path / "out", PRESETS[preset])
    found = planned(tmp_path / "out", 10**9, monkeypatch, **OPTIONS).weights
    assert converted_weights(made, preset) == pytest.approx(found, rel=0.1)


def test_weights_that_are_too_large_are_converted(tiny, monkeypatch):
    whole = planned(tiny, 10**9, monkeypatch, **OPTIONS)
    for name in ("int8", "int4"):
        available = whole.peak - whole.process - (whole.weights - converted_weights(whole, name)) + 10_000
        advice = advise(planned(tiny, available, monkeypatch, **OPTIONS), OPTIONS)
        assert f"with {name} weights it fits" in advice.says
        convert, serve = map(shlex.split, advice.commands)
        assert convert == ["longcat", "convert", tiny, f"{tiny}-{name}", "--quant", name]
        assert serve[:3] == ["longcat", "serve", f"{tiny}-{name}"]
        make_parser(["convert"]).parse_args(convert[1:])


def test_where_nothing_fits_the_line_says_what_would(tiny, monkeypatch):
    made = planned(tiny, 8 << 20, monkeypatch, **OPTIONS)
    advice = advise(made, OPTIONS)
    assert not advice.commands and "are free. More memory would" in advice.says


def test_without_weights_the_line_says_to_download(tiny, tmp_path, monkeypatch):
    from pathlib import Path

    (tmp_path / "config.json").write_text((Path(tiny) / "config.json").read_text())
    assert "longcat pull NAME" in advise(planned(tmp_path, 10**9, monkeypatch), {}).says


def test_the_command_prints_it(tiny, capsys):
    from longcat.cli import main

    assert main(["plan", tiny, "--bandwidth", "1", "--max-num-seqs", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == ["run it:", f"longcat serve {tiny} --max-num-seqs 2"]
    assert main(["plan", tiny, "--bandwidth", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"]["commands"] == [f"longcat serve {tiny}"]
