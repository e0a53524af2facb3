"""Checkpoints of `longcat convert` on the CUDA backend: their logical values, the CPU's logits, and invariance."""

import json
import math

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint

from support.checkpoints import TENSOR_CORE_SHAPES, VARIANTS, encode, from_bf16, make_checkpoint, to_bf16
from support.compare import assert_rows_close
from support.device_cases import forward_in_chunks, normal
from support.devices import EMULATED, EMULATED_F32, EMULATED_REVERSED, DeviceEngine, needs_gpu
from support.packed_reader import read_packed
from support.tolerances import BF16_MODEL, BF16_OPS, F32_ROW, INT8_INPUT_MODEL, LOGITS

pytestmark = pytest.mark.device

BF16_DEVICES = [EMULATED, pytest.param("cuda", marks=needs_gpu)]
INTEGERS = ["int8_x8", "int4_x8", "int8_x8_f16", "int4_x8_f16"]
SHAPES = {"wide": TENSOR_CORE_SHAPES, "odd": VARIANTS["odd"]["config_overrides"], "tied": {"tie_word_embeddings": True}}


def ids_of(count, seed=0):
    return np.random.default_rng(seed).integers(3, 60, count).tolist()


def write_unpacked(folder, packed):
    """The values of a packed checkpoint as f32."""
    config = json.loads((packed / "config.json").read_text())
    make_checkpoint(folder, config_overrides=config)
    shapes = {name: shape for name, shape, _ in _core.expected_tensors(json.dumps(config))}
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    stored = {name: (dtype, begin, end) for name, dtype, _, _, begin, end in _core.Checkpoint(str(packed)).tensors()}
    source = (packed / "model.safetensors").read_bytes()
    for name, shape in shapes.items():
        format = next((f for f in _core.PACKED_FORMATS if f"{name}.{f}" in stored), None)
        if format is not None:
            values = read_packed(packed, f"{name}.{format}", *shape)
        else:
            dtype, begin, end = stored[name]
            bits = np.frombuffer(source[begin:end], "<u2" if dtype == "BF16" else "<f4")
            values = from_bf16(bits) if dtype == "BF16" else bits
        begin, end = header[name]["data_offsets"]
        assert end - begin == 4 * math.prod(shape) and header[name]["dtype"] == "F32"
        raw[start + begin : start + end] = encode(values, "F32")
    path.write_bytes(raw)


@pytest.fixture(scope="module", params=["int4", "int8"])
def quant(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory, quant):
    """shape -> (the packed checkpoint, its values in f32)."""
    found = {}
    for shape, overrides in SHAPES.items():
        folder = tmp_path_factory.mktemp(f"{quant}_{shape}")
        make_checkpoint(folder / "bf16", seed=5, dtype="BF16", config_overrides=overrides)
        convert_checkpoint(str(folder / "bf16"), str(folder / "packed"), PRESETS[quant])
        write_unpacked(folder / "f32", folder / "packed")
        found[shape] = str(folder / "packed"), str(folder / "f32")
    return found


def row_errors(found, expected):
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_f32_kernels_multiply_the_logical_values(folders, shape):
    packed, unpacked = folders[shape]
    chunk = [([1, 2], 0, ids_of(70))]
    found = testing.DeviceModel(packed, EMULATED_F32, dtype="f32", kv_cache_dtype="f32").forward(chunk)
    expected = testing.DeviceModel(unpacked, "cpu", dtype="f32", kv_cache_dtype="f32").forward(chunk)
    assert_rows_close(found, expected, LOGITS)


@pytest.mark.parametrize("device", BF16_DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_logits_are_near_those_of_the_values_and_the_cpus(folders, device, shape):
    packed, unpacked = folders[shape]
    chunk = [([1, 2], 0, ids_of(70))]
    found = testing.DeviceModel(packed, device).forward(chunk)
    # A token whose router scores nearly tie may go to another expert: most rows must agree, not each.
    error = row_errors(found, testing.DeviceModel(unpacked, "cpu").forward(chunk))
    assert np.median(error) < BF16_MODEL and np.mean(error < 4 * BF16_MODEL) > 0.9, error
    # The CPU's kernels take inputs of 8 bits.
    error = row_errors(found, testing.DeviceModel(packed, "cpu").forward(chunk))
    assert np.median(error) < INT8_INPUT_MODEL, error


# A layer: two attentions (q_a, kv_a, q_b, o), two FFNs, the
# router's scores and picks, and two of the experts. One more: the head.
KERNELS = {"int8": 2 * 3 + 2 * 2 + 2 + 2 + 1, "int4": 2 * 4 + 2 * 2 + 2 + 2 + 1}


def test_kernels_on_tensor_cores_serve_all_packed_layers(folders, quant):
    model, counts = testing.DeviceModel(folders["wide"][0], EMULATED), []
    for tokens in (5, 32, 70):
        before = testing.emulated_thread_kernels()
        model.forward([([1, 2], 0, ids_of(tokens))])
        counts.append(testing.emulated_thread_kernels() - before)
    # More than 32 tokens: no layers are joined, nor gate and up, and other kernels pick.
    assert counts == [KERNELS[quant], KERNELS[quant], 2 * 4 + 2 * 3 + 1 + 2 + 1]


@pytest.mark.parametrize("device", [*BF16_DEVICES, EMULATED_REVERSED])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_do_not_depend_on_chunks_batch_padding_or_recording(folders, device, shape):
    prompt, generated = ids_of(70), ids_of(2, seed=1)

    def run(chunks, neighbours, recorded):
        return forward_in_chunks(folders[shape][0], device, prompt, generated, chunks, neighbours, recorded)

    whole = run([70], 0, False)
    assert np.isfinite(whole).all()
    assert np.array_equal(run([33, 32, 5], 5, True), whole)
    assert np.array_equal(run([1, 17, 52], 64, False), whole)


@pytest.mark.parametrize("device", BF16_DEVICES)
@pytest.mark.parametrize("format", INTEGERS)
def test_linear_of_any_number_of_tokens(device, format):
    """Of K in units, on tensor cores, and of other K and rows, elsewhere."""
    ops = testing.DeviceOps(device)
    for rows, cols in ((48, 384), (40, 128), (48, 72), (17, 33)):
        packed = testing.pack_matrix(normal(rows, cols, seed=1), format)
        values, x = _core.unpack(packed, format, rows, cols), normal(70, cols)
        whole = ops.linear_packed(x, packed, format, rows, True)
        assert_rows_close(whole, x.astype(np.float64) @ values.astype(np.float64).T, F32_ROW * 4)
        for count in (1, 8, 9, 16, 17, 32, 33):
            assert np.array_equal(ops.linear_packed(x[:count], packed, format, rows, True), whole[:count]), count
        assert_rows_close(ops.linear_packed(x, packed, format, rows), whole, BF16_OPS)


@pytest.mark.parametrize("device", [EMULATED_F32, *BF16_DEVICES])
@pytest.mark.parametrize("format", _core.PACKED_FORMATS)
@pytest.mark.parametrize("shape", [(40, 128), (17, 33)])
def test_rows_have_the_bits_of_the_format(device, format, shape):
    packed = testing.pack_matrix(normal(*shape, seed=1), format)
    ids = np.arange(shape[0], dtype=np.int32)
    found = testing.DeviceOps(device).packed_rows(ids, packed, format, *shape)
    values = _core.unpack(packed, format, *shape)
    assert np.array_equal(found, values if device == EMULATED_F32 else from_bf16(to_bf16(values)))


def test_packed_tables_lie_where_the_placement_says(folders):
    bytes_of, logits = {}, {}
    for placement in ("host", "device"):
        model = testing.DeviceModel(folders["wide"][0], EMULATED, ngram_placement=placement)
        bytes_of[placement], logits[placement] = model.emulated_bytes(), model.forward([([1, 2], 0, ids_of(70))])
    stored = _core.Checkpoint(folders["wide"][0]).tensors()
    tables = sum(end - begin for name, _, _, _, begin, end in stored if "embedders" in name)
    assert np.array_equal(logits["host"], logits["device"])
    assert tables <= bytes_of["device"] - bytes_of["host"] < tables + 12 * 256


def test_the_engine_generates(folders):
    with DeviceEngine(folders["wide"][0], device=EMULATED, max_num_seqs=8, kv_cache_memory=1 << 22) as engine:
        prompts = [ids_of(5), ids_of(40, seed=3)]
        options = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
        together = engine.generate(prompt_token_ids=prompts, **options)
        for prompt, out in zip(prompts, together, strict=True):
            [alone] = engine.generate(prompt_token_ids=[prompt], **options)
            assert alone.outputs[0].token_ids == out.outputs[0].token_ids
