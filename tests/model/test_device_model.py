"""The whole model on the CUDA backend: against the CPU, and the invariance contract bit for bit."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import SPARSE_VARIANTS, TENSOR_CORE_SHAPES, make_checkpoint
from support.compare import assert_rows_close
from support.device_cases import forward_in_chunks
from support.devices import EMULATED, EMULATED_F32, EMULATED_REVERSED, EMULATED_SMALL, DeviceEngine, needs_gpu
from support.tolerances import BF16_MODEL, LOGITS

pytestmark = pytest.mark.device

BF16_DEVICES = [EMULATED, pytest.param("cuda", marks=needs_gpu)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device_model")
    make_checkpoint(folder, seed=5, dtype="BF16")
    return str(folder)


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide_device_model")
    make_checkpoint(folder, seed=5, dtype="BF16", config_overrides=TENSOR_CORE_SHAPES)
    return str(folder)


def ids_of(count, seed=0):
    return np.random.default_rng(seed).integers(3, 60, count).tolist()


def test_int8_latents_are_of_the_cpu_alone(checkpoint):
    with pytest.raises(ValueError, match='kv_cache_dtype="int8" on'):
        DeviceEngine(checkpoint, device=EMULATED, kv_cache_dtype="int8")


def test_int8_index_keys_are_of_the_cpu_alone(tmp_path):
    make_checkpoint(tmp_path, seed=2, dtype="BF16", config_overrides=SPARSE)
    with pytest.raises(ValueError, match='index_cache_dtype="int8" on'):
        DeviceEngine(str(tmp_path), device=EMULATED, index_cache_dtype="int8")


def test_f32_kernels_give_the_cpus_logits(checkpoint):
    ids = ids_of(100)
    logits = [
        testing.DeviceModel(checkpoint, device, dtype="f32", kv_cache_dtype="f32").forward([([1, 2], 0, ids)])
        for device in (EMULATED_F32, "cpu")
    ]
    assert_rows_close(logits[0], logits[1], LOGITS)


@pytest.mark.parametrize("device", BF16_DEVICES)
@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "fp8"])
def test_bf16_logits_are_near_the_cpus(checkpoint, device, kv_cache_dtype):
    ids = ids_of(70)
    found, expected = (testing.DeviceModel(checkpoint, name, kv_cache_dtype=kv_cache_dtype) for name in (device, "cpu"))
    logits = found.forward([([1, 2], 0, ids)]), expected.forward([([1, 2], 0, ids)])
    assert np.array_equal(found.last_ngram_ids(), expected.last_ngram_ids())
    # A token whose router scores nearly tie may go to another expert: most rows must agree, not each.
    scale = np.abs(logits[1]).max(axis=1)
    error = np.abs(logits[0] - logits[1]).max(axis=1) / scale
    assert np.median(error) < BF16_MODEL and np.mean(error < 4 * BF16_MODEL) > 0.9, error


@pytest.mark.parametrize("device", BF16_DEVICES)
@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "fp8"])
def test_bits_do_not_depend_on_chunks_batch_padding_or_recording(checkpoint, device, kv_cache_dtype):
    prompt, generated, other = ids_of(75), ids_of(6, seed=1), ids_of(20, seed=2)

    def run(chunks, neighbours, padding, recorded):
        """Logits of the prompt and the generated tokens, and the latents they leave."""
        model = testing.DeviceModel(checkpoint, device, kv_cache_dtype=kv_cache_dtype)
        model.poison()
        logits, start = [], 0
        for count in chunks:
            batch = [([4, 2], start, prompt[start : start + count])]
            if neighbours:
                batch.insert(0, ([7], 0, other))
            out = model.forward(batch)
            logits.append(out[len(out) - count :])
            start += count
        for i, token in enumerate(generated):
            batch = [([4, 2], len(prompt) + i, [token])]
            if neighbours:
                batch.append(([7], len(other) + i, [token]))
            rows = 8 if padding else 0
            logits.append(model.forward(batch, num_generated=len(batch), num_rows=rows, recorded=recorded)[:1])
        used = len(prompt) + len(generated)
        latents = [model.latents(layer, [4, 2]) for layer in range(2)]
        row = latents[0].shape[1] // 64
        return np.concatenate(logits), [stored.reshape(-1, row)[:used] for stored in latents]

    whole, latents = run([75], neighbours=False, padding=False, recorded=False)
    assert np.isfinite(whole).all()
    for variant in (
        {"chunks": [1, 63, 11], "neighbours": False, "padding": False, "recorded": False},
        {"chunks": [75], "neighbours": True, "padding": False, "recorded": False},
        {"chunks": [40, 35], "neighbours": True, "padding": True, "recorded": True},
    ):
        found, stored = run(**variant)
        assert np.array_equal(found, whole), variant
        assert all(np.array_equal(a, b) for a, b in zip(stored, latents, strict=True)), variant


# A layer: two attentions (q_a with kv_a, q_b, o), two FFNs (gate with up, down), the router's scores and picks, and two
# of the experts. One more: the head.
FEW_TOKEN_KERNELS = 2 * 3 + 2 * 2 + 2 + 2 + 1


@pytest.mark.parametrize("device", BF16_DEVICES)
def test_few_token_kernels_give_logits_near_the_cpus(wide_checkpoint, device):
    ids = ids_of(64)
    before = testing.emulated_thread_kernels()
    found = testing.DeviceModel(wide_checkpoint, device).forward([([1, 2], 0, ids)])
    if device == EMULATED:
        assert testing.emulated_thread_kernels() - before == FEW_TOKEN_KERNELS
    expected = testing.DeviceModel(wide_checkpoint, "cpu").forward([([1, 2], 0, ids)])
    error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert np.median(error) < BF16_MODEL and np.mean(error < 4 * BF16_MODEL) > 0.9, error


@pytest.mark.parametrize("device", [*BF16_DEVICES, EMULATED_REVERSED])
def test_few_and_many_tokens_of_a_model_have_the_same_bits(wide_checkpoint, device):
    """Other kernels compute a prompt of 66 tokens in one step than in chunks of few. Decodes follow, alone and beside
    others, padded and recorded."""
    prompt, generated = ids_of(66), ids_of(2, seed=1)

    def run(chunks, neighbours, recorded):
        return forward_in_chunks(wide_checkpoint, device, prompt, generated, chunks, neighbours, recorded)

    whole = run([66], 0, False)
    assert np.isfinite(whole).all()
    assert np.array_equal(run([64, 2], 5, True), whole)
    assert np.array_equal(run([1, 17, 48], 64, False), whole)


def test_order_of_blocks_and_threads_does_not_matter(checkpoint):
    ids = ids_of(70)
    logits = [
        testing.DeviceModel(checkpoint, device).forward([([1, 2], 0, ids)]) for device in (EMULATED, EMULATED_REVERSED)
    ]
    assert np.array_equal(*logits)


# The published shape of attention, but for the number of heads: decode runs on tensor cores.
TENSOR_CORE_SHAPE = {"num_attention_heads": 16, "kv_lora_rank": 512, "qk_nope_head_dim": 16, "qk_rope_head_dim": 64}


TENSOR_CORE_TILES = [(EMULATED, "bf16"), (EMULATED, "fp8"), (EMULATED_SMALL, "bf16")]


@pytest.mark.parametrize("of_device,kv_cache_dtype", TENSOR_CORE_TILES)
def test_decode_on_tensor_cores_gives_the_same_bits_in_every_batch(tmp_path, of_device, kv_cache_dtype):
    """Generated tokens one by one, as neighbours, beside others, padded and recorded, on either order of blocks."""
    make_checkpoint(tmp_path, seed=5, dtype="BF16", config_overrides={"num_layers": 1, **TENSOR_CORE_SHAPE})
    prompt, generated = ids_of(3), ids_of(7, seed=1)

    def run(counts, device=of_device, neighbours=False, rows=0):
        model = testing.DeviceModel(str(tmp_path), device, kv_cache_dtype=kv_cache_dtype, num_blocks=16)
        model.poison()
        model.forward([([4], 0, prompt), ([7], 0, prompt)])
        logits, start = [], 0
        for count in counts:
            batch = [([4], len(prompt) + start, generated[start : start + count])]
            if neighbours:
                batch.append(([7], len(prompt) + start, generated[:count]))
            out = model.forward(batch, num_generated=len(batch), num_rows=rows, recorded=rows > 0)
            logits.append(out[:count])
            start += count
        return np.concatenate(logits)

    alone = run([1] * 7)
    assert np.isfinite(alone).all()
    for variant in (
        {"counts": [5, 2]},
        {"counts": [7], "neighbours": True},
        {"counts": [1, 4, 2], "rows": 8},
        {"counts": [3, 4], "device": EMULATED_REVERSED if of_device == EMULATED else of_device},
    ):
        assert np.array_equal(run(**variant), alone), variant


@pytest.mark.parametrize("of_device,kv_cache_dtype", [*TENSOR_CORE_TILES, (EMULATED_SMALL, "fp8")])
def test_prefill_on_tensor_cores_gives_the_same_bits_in_every_chunk(tmp_path, of_device, kv_cache_dtype):
    """A prompt whole, in chunks, beside another sequence, and on either order of blocks; near the CPU's logits."""
    shape = {"num_layers": 1, **TENSOR_CORE_SHAPE, "num_attention_heads": 2, "qk_nope_head_dim": 128, "v_head_dim": 128}
    make_checkpoint(tmp_path, seed=5, dtype="BF16", config_overrides=shape)
    prompt, blocks = ids_of(150), [4, 2, 9]

    def run(counts, device=of_device, neighbours=False):
        model = testing.DeviceModel(str(tmp_path), device, kv_cache_dtype=kv_cache_dtype, num_blocks=16)
        model.poison()
        logits, start = [], 0
        for count in counts:
            batch = [(blocks, start, prompt[start : start + count])]
            if neighbours:
                batch.insert(0, ([7], 0, prompt[:30]))
            logits.append(model.forward(batch)[-count:])
            start += count
        return np.concatenate(logits)

    whole = run([150])
    for variant in (
        {"counts": [64, 86]},
        {"counts": [1, 126, 23], "neighbours": True},
        {"counts": [130, 20], "device": EMULATED_REVERSED if of_device == EMULATED else of_device},
    ):
        assert np.array_equal(run(**variant), whole), variant
    expected = run([150], device="cpu")
    error = np.abs(whole - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert np.median(error) < BF16_MODEL


SPARSE = SPARSE_VARIANTS["sparse"]["config_overrides"] | {"num_layers": 2}
SPARSE_TENSOR_CORES = SPARSE | TENSOR_CORE_SHAPE | {"num_layers": 1, "index_n_heads": 16, "index_head_dim": 128}
SPARSE_PREFILL = SPARSE_TENSOR_CORES | {"num_attention_heads": 2, "qk_nope_head_dim": 128, "v_head_dim": 128}


@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize(
    "shape", [SPARSE, SPARSE_TENSOR_CORES, SPARSE_PREFILL], ids=["plain", "tensor cores", "prefill on tensor cores"]
)
def test_sparse_attention_gives_the_same_bits_in_every_batch(tmp_path, shape, kv_cache_dtype):
    """A prompt in chunks, then generated tokens: one by one, as neighbours, beside others, padded and recorded."""
    make_checkpoint(tmp_path, seed=5, dtype="BF16", config_overrides=shape)
    prompt, generated, blocks = ids_of(40), ids_of(6, seed=1), [4, 2]

    def run(chunks, counts, device=EMULATED, neighbours=False, rows=0):
        model = testing.DeviceModel(str(tmp_path), device, kv_cache_dtype=kv_cache_dtype)
        model.poison()
        logits, start = [], 0
        for count in chunks:
            batch = [(blocks, start, prompt[start : start + count])]
            if neighbours:
                batch.insert(0, ([7], 0, prompt[:30]))
            logits.append(model.forward(batch)[-count:])
            start += count
        for count in counts:
            first = start - len(prompt)
            batch = [(blocks, start, generated[first : first + count])]
            if neighbours:
                batch.append(([7], 30 + first, generated[:count]))
            out = model.forward(batch, num_generated=len(batch), num_rows=rows, recorded=rows > 0)
            logits.append(out[:count])
            start += count
        return np.concatenate(logits)

    alone = run([40], [1] * 6)
    assert np.isfinite(alone).all()
    for variant in (
        {"chunks": [24, 1, 15], "counts": [5, 1]},
        {"chunks": [30, 10], "counts": [2, 4], "neighbours": True, "rows": 16},
        {"chunks": [40], "counts": [3, 3], "device": EMULATED_REVERSED},
    ):
        assert np.array_equal(run(**variant), alone), variant


def test_sparse_logits_are_near_the_cpus(tmp_path):
    """Of the published shape of attention and indexer, but for the number of heads."""
    make_checkpoint(tmp_path, seed=5, dtype="BF16", config_overrides=SPARSE_TENSOR_CORES)
    before = testing.emulated_thread_kernels()
    found, expected = (testing.DeviceModel(str(tmp_path), name) for name in (EMULATED, "cpu"))
    chunk = [([1, 2], 0, ids_of(70))]
    error = np.abs((rows := expected.forward(chunk)) - found.forward(chunk)).max(axis=1) / np.abs(rows).max(axis=1)
    # The list of prompt tokens, then of a layer: scores, two kernels of the selection, two attentions.
    assert testing.emulated_thread_kernels() - before == 1 + 3 + 2
    assert np.median(error) < BF16_MODEL


@pytest.mark.parametrize(
    "shape,expected",
    [({}, (35, 7)), (TENSOR_CORE_SHAPE, (33, 8)), (SPARSE, (43, 7)), (SPARSE_TENSOR_CORES, (41, 8))],
    ids=["plain", "tensor cores", "sparse", "sparse, tensor cores"],
)
def test_nodes_of_a_recorded_step(tmp_path, shape, expected):
    """What a graph launches: so much a layer, whatever the number of tokens."""

    def nodes(num_layers, num_tokens):
        folder = tmp_path / str(num_layers)
        if not folder.exists():
            make_checkpoint(folder, dtype="BF16", config_overrides={**shape, "num_layers": num_layers})
        model = testing.DeviceModel(str(folder), EMULATED)
        model.forward([([block], 0, [3, 4]) for block in range(1, num_tokens + 1)])
        chunks = [([block], 2, [5]) for block in range(1, num_tokens + 1)]
        model.forward(chunks, num_generated=num_tokens, num_rows=num_tokens, recorded=True)
        return model.num_nodes()

    layer = nodes(2, 1) - nodes(1, 1)
    assert nodes(2, 3) == nodes(2, 1)
    assert (layer, nodes(1, 1) - layer) == expected


def test_nodes_of_a_recorded_step_on_tensor_cores(wide_checkpoint):
    """Up to 64 tokens, fewer kernels compute router, experts, pairs of layers and FFNs."""

    def nodes(num_tokens):
        model = testing.DeviceModel(wide_checkpoint, EMULATED, num_blocks=num_tokens + 1)
        chunks = [([block], 0, [5]) for block in range(1, num_tokens + 1)]
        model.forward(chunks, num_generated=num_tokens, num_rows=num_tokens, recorded=True)
        return model.num_nodes()

    assert [nodes(1), nodes(64), nodes(65)] == [31 + 7, 31 + 7, 35 + 7]


def test_nodes_of_a_recorded_step_do_not_grow_with_the_longest_context(checkpoint):
    """Few pieces of attention where contexts are short, however long they may become (5,120 blocks: 327,680 tokens)."""

    def nodes(num_tokens, num_blocks, start=2):
        # With a small workspace, as if the heads were many.
        model = testing.DeviceModel(checkpoint, "cuda-emulated-reversed", num_blocks=num_blocks)
        chunks = [(list(range(1, start // 64 + 2)), start, [5]) for _ in range(num_tokens)]
        model.forward(chunks, num_generated=num_tokens, num_rows=num_tokens, recorded=True)
        return model.num_nodes()

    assert len({nodes(rows, num_blocks) for rows in (1, 16, 64) for num_blocks in (32, 5120)}) == 1
    # One kernel an attention, in place of pieces and their sum, where the workspace cannot hold the pieces.
    assert nodes(64, 5120, start=5000) == nodes(64, 128, start=5000) == nodes(1, 32) - 4


def test_decode_in_turn_gives_the_bits_of_decode_by_pieces(checkpoint):
    """64 rows at a long context overflow a small workspace: a block then takes the pieces of its token in turn."""
    prompt = ids_of(300)
    logits = []
    for device, rows in [(EMULATED, 1), ("cuda-emulated-reversed", 1), ("cuda-emulated-reversed", 64)]:
        model = testing.DeviceModel(checkpoint, device, num_blocks=5120, max_tokens=300)
        blocks = list(range(1, 90))  # of a context of 5,696 tokens, so that the bucket is 8,192
        model.forward([(blocks, 0, prompt)])
        step = [(blocks, 300, [7])] + [([100 + row], 0, [5]) for row in range(rows - 1)]
        logits.append(model.forward(step, num_generated=rows, num_rows=rows, recorded=True)[0])
    assert all(np.array_equal(found, logits[0]) for found in logits[1:])
