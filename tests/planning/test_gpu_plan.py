"""`longcat plan` beside the memory of the emulated GPU: every format and placement, on one rank and on two."""

import functools

import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.cli.commands.plan import gpu_rows
from longcat.engine.config import EngineConfig
from longcat.planning.cost import GPUS
from longcat.planning.plan import plan

from support.checkpoints import SPARSE_VARIANTS, TENSOR_CORE_SHAPES, make_checkpoint
from support.devices import EMULATED
from support.ranks import all_well, on_ranks

pytestmark = pytest.mark.device

LAYERS = {"num_layers": 2}
MODELS = {
    "lite": {**TENSOR_CORE_SHAPES, **LAYERS},
    "sparse": {**SPARSE_VARIANTS["sparse"]["config_overrides"], **TENSOR_CORE_SHAPES, **LAYERS},
}
PACKED = ("int8", "int4")
ON_LOAD = ("fp8", "fp8-experts")  # made of bf16 while loading
QUANT = {"fp8-experts": "fp8 experts"}  # names in Plan.placements()
STEP = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "kv_cache_memory": "1MiB", "max_model_len": 128}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Makes a checkpoint of a model in a format, once."""

    @functools.cache
    def make(model: str, format: str) -> str:
        folder = tmp_path_factory.mktemp(f"{model}-{format}")
        if format not in PACKED:
            make_checkpoint(folder, seed=2, dtype="BF16", config_overrides=MODELS[model])
        else:
            convert_checkpoint(make(model, "bf16"), str(folder / "out"), PRESETS[format])
            folder = folder / "out"
        return str(folder)

    return make


def taken(folder: str, num_ranks: int, **options) -> list[dict[str, int]]:
    """What each rank's engine takes of its emulated GPU."""
    layout = {"tensor_parallel_size": num_ranks, "expert_parallel_size": num_ranks}
    core = EngineConfig.of(folder, {**STEP, **layout, **options}).core_options()
    core.device = EMULATED
    if num_ranks == 1:
        return [testing.emulated_bytes(folder, core)]
    return all_well(on_ranks(num_ranks, lambda ranks: testing.emulated_bytes(folder, core, communicator=ranks)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("format", ["bf16", *ON_LOAD, "int8", "int4"])
@pytest.mark.parametrize("placement", ["host", "device"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_planned_weights_are_those_on_the_gpu(folder_of, model, format, placement, num_ranks):
    folder = folder_of(model, "bf16" if format in ON_LOAD else format)
    quantization = {"quantization": format} if format in ON_LOAD else {}
    found = max(rank["weights"] for rank in taken(folder, num_ranks, ngram_placement=placement, **quantization))
    made = plan(folder, bandwidth=1e9, **STEP)
    [row] = [
        row
        for row in gpu_rows(made, GPUS["h100"], num_ranks, placement)
        if row["tp"] == row["ep"] == num_ranks and row["experts"] == ("as stored" if format in PACKED else format)
    ]
    print(f"planned {row['weights']:,} bytes, found {found:,}: {row['weights'] / found - 1:+.2%}")
    assert row["weights"] == pytest.approx(found, rel=0.01)
    if num_ranks == 1 and (format not in PACKED or placement == "host"):  # as planned from the config alone
        names = ("GPU" if placement == "device" else "GPU, tables in host memory", QUANT.get(format, format))
        source = plan(folder_of(model, "bf16"), bandwidth=1e9, **STEP)
        [row] = [row for row in source.placements() if (row.placement, row.format) == names]
        assert row.fast_bytes == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_planned_buffers_are_those_on_the_gpu(folder_of, model, num_ranks):
    """What the backend keeps, the activations, and the room for what is allocated after the cache."""
    made = plan(folder_of(model, "bf16"), bandwidth=1e9, **STEP)
    activations = made.gpu_buffers(num_ranks, num_ranks) - _core.GPU_OPS_BYTES - _core.GPU_STEP_BYTES
    for rank in taken(folder_of(model, "bf16"), num_ranks):
        assert 0.99 * _core.GPU_OPS_BYTES < rank["ops"] <= _core.GPU_OPS_BYTES
        rest = rank["all"] - rank["weights"] - rank["cache"] - rank["ops"]
        assert activations <= rest <= activations + _core.GPU_STEP_BYTES
