"""The cost model: what holds at any rates. bench/scripts/parallel_steps.py compares it with measured steps."""

import dataclasses
import json

import pytest
from longcat.checkpoint.random_weights import LITE_CONFIG, LITE_SPARSE_CONFIG, TINY_CONFIG
from longcat.cli import main
from longcat.planning.cost import GPUS, H100, busiest_rank, decode_step, layouts
from longcat.planning.plan import GPU_BANDWIDTH, plan


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    """The real model's config, without its 137 GB."""
    folder = tmp_path_factory.mktemp("lite")
    (folder / "config.json").write_text(json.dumps(LITE_CONFIG))
    return plan(str(folder), bandwidth=1e10, max_model_len=32768)


def step(lite, tp, ep, batch=1, context=1024, hardware=H100, expert_bits=16):
    return decode_step(lite, hardware, tp, ep, batch, context, expert_bits, 16)


def test_one_device_reads_what_is_active(lite):
    """Of one request: the parameter budget of the model, 2.92 B outside of experts, and the experts that are hit."""
    one = step(lite, 1, 1)
    experts, _ = busiest_rank(256, 128, 12, 1, 1)
    assert 7.8 < experts < 8.2
    parameters = (one.core + one.experts) * H100.bandwidth / 2
    assert parameters == pytest.approx(2.92e9 + 14 * experts * 9437184 + 16.5e6, rel=0.01)
    assert one.sums == 0
    assert one.weights == pytest.approx(37.1e9 * 2, rel=0.01)  # all but the N-gram tables


def test_more_ranks_hold_and_read_less(lite):
    steps = [step(lite, n, n, batch=16) for n in (1, 2, 4, 8)]
    for fewer, more in zip(steps, steps[1:], strict=False):
        assert more.weights < 0.6 * fewer.weights
        assert more.core < fewer.core and more.experts < fewer.experts
        assert more.sums > fewer.sums
        assert more.latents == fewer.latents  # every rank has all


def test_heads_need_three_sums_more_than_experts(lite):
    """With tp 1 a layer has one sum, over all; a machine's edge makes sums dearer."""
    free = dataclasses.replace(H100, link_bandwidth=1e30, network_bandwidth=1e30)
    with_heads, without = (step(lite, tp, 8, hardware=free).sums / H100.sum_seconds / 3 for tp in (8, 1))
    assert with_heads == pytest.approx(4 * 14 + 3) and without == pytest.approx(14 + 3)
    assert step(lite, 1, 16, hardware=free).sums > step(lite, 1, 8, hardware=free).sums + 14 * H100.network_seconds


def test_the_busiest_rank():
    """One rank has all picks; of many requests each has its share; of one some rank has more than that."""
    all_experts, rows = busiest_rank(16, 0, 4, 1, 1)
    assert (all_experts, rows) == (4, 4)
    experts, rows = busiest_rank(16, 8, 4, 4, 512)
    assert experts == 4 and rows == pytest.approx(512 * 4 * 16 / 24 / 4, rel=0.1)
    assert busiest_rank(256, 128, 12, 8, 1)[0] > 2 * 8 / 8


def test_measured_times_of_a_weight():
    table = dataclasses.replace(H100, weight_seconds=((1, 1e-9), (4, 2.5e-9), (8, 2.5e-9)))
    for rows, seconds in [(0.5, 1.0), (1, 1.0), (2, 1.5), (4, 2.5), (6, 2.5), (16, 5.0)]:
        assert table.matrix_time(1e9, 16, rows) == pytest.approx(seconds)


def test_layouts_divide(lite):
    assert (8, 8) in layouts(8, LITE_CONFIG) and (2, 8) in layouts(8, LITE_CONFIG)
    assert all(max(tp, ep) == 64 and tp <= 32 for tp, ep in layouts(64, LITE_CONFIG))
    assert layouts(3, TINY_CONFIG) == [] and layouts(1, TINY_CONFIG) == [(1, 1)]


def test_plan_prints_gpus(lite, capsys):
    arguments = ["plan", lite.model, "--bandwidth", "10", "--gpus"]
    assert main([*arguments, "8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["tp"], row["ep"]) for row in rows} == set(layouts(8, LITE_CONFIG))
    assert main([*arguments, "8", "--ngram-placement", "device", "--json"]) == 0
    more = {row["weights"] - beside["weights"] for row, beside in
            zip(json.loads(capsys.readouterr().out), rows, strict=True)}  # fmt: skip
    tables = 2 * sum(part.weights for part in lite.parts if part.name == "N-gram tables")
    assert all(size == pytest.approx(tables / 8, abs=2) for size in more)
    assert [row["steps"][0]["ms"] for row in rows] == sorted(row["steps"][0]["ms"] for row in rows)
    assert main([*arguments, "8"]) == 0
    text = capsys.readouterr().out
    assert "--tp 8 --ep 8" in text and "not measured" in text
    for wrong, said in [
        ("0", "expected an integer from 1 to 64"),
        ("65", "expected an integer from 1 to 64"),
        ("7", "no layout divides"),
    ]:
        assert main([*arguments, wrong]) == 2
        assert said in capsys.readouterr().err


def test_plan_prints_other_gpus(lite, capsys):
    """Each model has a speed and a size of its own."""
    formats, milliseconds = {}, []
    for name, gpu in GPUS.items():
        for count in (2, 4):
            arguments = ["plan", lite.model, "--bandwidth", "10", "--gpus", str(count), "--gpu", name]
            assert main(arguments) == 0
            assert f"on {count} {gpu.name}, " in capsys.readouterr().out
            assert main([*arguments, "--json"]) == 0
            rows = json.loads(capsys.readouterr().out)
            assert all(row["weights"] + lite.gpu_buffers(row["tp"], row["ep"]) <= gpu.memory for row in rows)
            formats[name, count] = {row["experts"] for row in rows}
        milliseconds.append(min(row["steps"][0]["ms"] for row in rows if row["experts"] == "fp8"))
    assert H100.bandwidth == GPU_BANDWIDTH  # of the placements
    h100, *others = milliseconds
    assert others == sorted(others) and others[0] < h100 < others[1]  # H200, H100, A100, RTX 5090, RTX 4090
    every = {"bf16", "fp8-experts", "fp8"}
    assert [formats[name, 2] for name in ("h100", "rtx5090", "rtx4090")] == [every, every - {"bf16"}, {"fp8"}]
    assert main([*arguments[:-1], "h800"]) == 2
    assert "--gpu h800; expected h100, h200, a100, rtx5090, rtx4090" in capsys.readouterr().err


def test_plan_prints_gpus_of_sparse_attention(tmp_path, capsys):
    """At long contexts, a token reads its index keys and its selection in place of all latents."""
    (tmp_path / "config.json").write_text(json.dumps(LITE_SPARSE_CONFIG))
    options = {"max_model_len": 131072, "kv_cache_memory": "16GiB", "kv_cache_dtype": "bf16"}
    made = plan(tmp_path, bandwidth=1e10, **options)
    steps = [decode_step(made, H100, 8, 8, 64, context, 16, 16) for context in (2048, 131072)]
    assert steps[1].latents == 64 * steps[0].latents == 64 * 131072 * made.kv_bytes_per_token
    read = 2048 * made.kv_read_per_token + 131072 * made.index_read_per_token
    assert steps[1].cache == pytest.approx(64 * read / H100.bandwidth)
    assert main(["plan", str(tmp_path), "--bandwidth", "10", "--max-model-len", "4096", "--gpus", "8"]) == 0
    assert "--tp 8 --ep 8" in capsys.readouterr().out


def test_plan_of_several_ranks(lite, capsys):
    arguments = ["plan", lite.model, "--bandwidth", "10", "--tp", "2", "--ep", "4"]
    assert main([*arguments, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["rank_weights"]) == 4
    assert main(arguments) == 0
    assert "4 ranks, --tp 2 --ep 4, with weights of" in capsys.readouterr().out
    assert main([*arguments[:-1], "3"]) == 2
    assert "the larger must be a multiple of the other" in capsys.readouterr().err
