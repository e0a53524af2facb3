"""The end of `longcat plan`: the command that makes a checkpoint fit, tried with less memory than there is."""

import dataclasses
import json
import shlex

import longcat._core as _core
import pytest
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.cli import make_parser
from longcat.planning.advice import advise, weights
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
    assert weights(made, preset, made.num_tokens) == pytest.approx(found, rel=0.1)


def test_weights_that_are_too_large_are_converted(tiny, monkeypatch):
    whole = planned(tiny, 10**9, monkeypatch, **OPTIONS)
    for name in ("int8", "int4"):
        available = whole.peak - whole.process - (whole.weights - weights(whole, name, whole.num_tokens)) + 10_000
        advice = advise(planned(tiny, available, monkeypatch, **OPTIONS), OPTIONS)
        assert f"with {name} weights it fits" in advice.says
        convert, serve = map(shlex.split, advice.commands)
        assert convert == ["longcat", "convert", tiny, f"{tiny}-{name}", "--quant", name]
        assert serve[:3] == ["longcat", "serve", f"{tiny}-{name}"]
        make_parser(["convert"]).parse_args(convert[1:])


def test_a_shorter_context_comes_first(tiny, monkeypatch):
    options = {"max_num_seqs": 4}
    whole = planned(tiny, 10**9, monkeypatch, **options)
    half = planned(tiny, 10**9, monkeypatch, max_num_seqs=4, max_model_len=1024)
    assert half.kv_cache < whole.kv_cache
    monkeypatch.setattr("longcat.planning.advice._SHORTEST", (1024,))
    made = dataclasses.replace(whole, available=(half.peak + whole.peak) // 2 - whole.process)
    advice = advise(made, options)
    assert advice.says == "with a context of 1024 tokens it fits"
    assert advice.commands == (f"longcat serve {tiny} --max-num-seqs 4 --max-model-len 1024",)


def test_a_name_of_the_hub_stays_a_name(tiny, tmp_path, monkeypatch):
    """The converted checkpoint goes to the current folder, not into the cache."""
    snapshot = tmp_path / "models--org--model" / "snapshots" / "1"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny)
    made = dataclasses.replace(planned(tiny, 10**9, monkeypatch, **OPTIONS), model=str(snapshot))
    assert advise(made, {}).commands == ("longcat serve org/model",)
    available = made.peak - made.process - (made.weights - weights(made, "int8", made.num_tokens)) + 10_000
    advice = advise(dataclasses.replace(made, available=available), OPTIONS)
    assert advice.commands[0] == "longcat convert org/model model-int8 --quant int8"
    assert advice.commands[1].startswith("longcat serve model-int8 ")


def test_where_nothing_fits_the_line_says_what_would(tiny, monkeypatch):
    made = planned(tiny, 8 << 20, monkeypatch, **OPTIONS)
    advice = advise(made, OPTIONS)
    assert not advice.commands and "are free. More memory would" in advice.says


def test_without_weights_the_line_says_to_download(tiny, tmp_path, monkeypatch):
    from pathlib import Path

    (tmp_path / "config.json").write_text((Path(tiny) / "config.json").read_text())
    advice = advise(planned(tmp_path, 10**9, monkeypatch), {})
    assert "longcat pull NAME fetches them. Then: run it" in advice.says
    assert advice.commands == (f"longcat serve {tmp_path}",)


def test_the_command_prints_it(tiny, capsys):
    from longcat.cli import main

    assert main(["plan", tiny, "--bandwidth", "1", "--max-num-seqs", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == ["run it:", f"longcat serve {tiny} --max-num-seqs 2"]
    assert main(["plan", tiny, "--bandwidth", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"]["commands"] == [f"longcat serve {tiny}"]
