"""LongCat-Flash-Lite-Sparse: the whole model against its reference, and against dense attention."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from longcat import _testing as testing

from reference.sparse import SparseModel, choose
from support.checkpoints import (
    SPARSE_VARIANTS,
    make_checkpoint,
    random_token_ids,
    read_config,
    read_safetensors,
    write_safetensors,
)
from support.devices import EMULATED_F32
from support.tolerances import LOGITS, ROUTER_GAP

BLOCKS = [3, 1, 2, 5, 4]
INDEX_GAP = 2e-5  # over the RMS of a row: f32 arithmetic moves scores by about a tenth of it
NUM_TOKENS = 150


def clear_positions(trace):
    """Tokens whose routing and selections, and those of all tokens before, are no near-ties."""
    clear = np.minimum.reduce(trace.router_gaps) > ROUTER_GAP
    for indexed in trace.indexed:
        # Equal scores are all 0, exactly so in any arithmetic: the products of all heads are negative.
        clear &= (indexed.gaps > INDEX_GAP) | (indexed.gaps == 0)
    return np.logical_and.accumulate(clear)


@pytest.fixture(scope="module", params=[(v, s) for v in SPARSE_VARIANTS for s in (1, 2)], ids=str)
def case(request, tmp_path_factory):
    """A checkpoint in f32, tokens, and what the reference computes."""
    variant, seed = request.param
    folder = tmp_path_factory.mktemp(variant)
    config = make_checkpoint(folder, seed=seed, mtp=True, **SPARSE_VARIANTS[variant])
    token_ids = random_token_ids(seed, NUM_TOKENS, config["vocab_size"])
    return folder, config, token_ids, SparseModel(folder).trace(token_ids)


def test_all_parts_equal_the_reference(case):
    folder, config, token_ids, expected = case
    model = testing.Model(str(folder), "f32")
    logits = model.forward([(BLOCKS, 0, token_ids)])
    clear = clear_positions(expected)
    assert clear.sum() > config["index_topk"] + 40
    for sub_layer, latents in enumerate(expected.latents):
        assert np.abs(model.latents(sub_layer, BLOCKS, NUM_TOKENS) - latents)[clear].max() <= LOGITS
    for layer, indexed in enumerate(expected.indexed):
        assert np.abs(model.index_keys(layer, BLOCKS, NUM_TOKENS) - indexed.keys)[clear].max() <= LOGITS
    last, found = expected.indexed[-1], model.last_selection()
    # The model's queries carry sqrt(hidden / rank), its head weights no scale.
    heads, dim = config["index_n_heads"], config["index_head_dim"]
    queries = found["queries"].reshape(last.queries.shape) * np.sqrt(config["q_lora_rank"] / config["hidden_size"])
    assert np.abs(queries - last.queries)[clear].max() <= LOGITS
    assert np.abs(found["weights"] * (heads * dim) ** -0.5 - last.weights)[clear].max() <= LOGITS
    for p in range(config["index_topk"], NUM_TOKENS):
        assert not clear[p] or found["selected"][p].tolist() == last.sets[p], f"position {p}"
    difference = np.abs(logits - expected.logits).max(axis=1)
    print(f"clear {clear.mean():.0%}, logits {difference[clear].max():.1e}")
    assert difference[clear].max() <= LOGITS


@pytest.mark.parametrize("num_layers", [1, 2])
def test_selections_of_every_layer(tmp_path, num_layers):
    """A model of the first layers computes what these compute in the whole model."""
    overrides = SPARSE_VARIANTS["sparse"]["config_overrides"] | {"num_layers": num_layers}
    config = make_checkpoint(tmp_path, seed=2, config_overrides=overrides)
    token_ids = random_token_ids(2, NUM_TOKENS, config["vocab_size"])
    expected = SparseModel(tmp_path).trace(token_ids)
    model = testing.Model(str(tmp_path), "f32")
    model.forward([(BLOCKS, 0, token_ids)])
    found, clear = model.last_selection()["selected"], clear_positions(expected)
    for p in range(config["index_topk"], NUM_TOKENS):
        assert not clear[p] or found[p].tolist() == expected.indexed[-1].sets[p], f"position {p}"


def test_generated_tokens_equal_prompt_tokens(case):
    """The other kind of arithmetic, one token at a time."""
    folder, config, token_ids, expected = case
    clear = clear_positions(expected)
    model = testing.Model(str(folder), "f32")
    logits = [model.forward([(BLOCKS, p, [token])], num_generated=1)[0] for p, token in enumerate(token_ids)]
    assert np.abs(np.array(logits) - expected.logits)[clear].max() <= LOGITS


def test_logits_depend_on_the_selection(case):
    """Dense attention with the same weights is another model."""
    folder, config, token_ids, expected = case
    dense = folder / "dense"
    dense.mkdir(exist_ok=True)
    shutil.copy(folder / "model.safetensors", dense)
    (dense / "config.json").write_text(json.dumps(config | {"index_topk": 512}))
    logits = testing.Model(str(dense), "f32").forward([(BLOCKS, 0, token_ids)])
    topk, clear = config["index_topk"], clear_positions(expected)
    difference = np.abs(logits - expected.logits).max(axis=1)
    assert difference[:topk][clear[:topk]].max() <= LOGITS
    assert difference[topk + 8 :].max() > 100 * LOGITS


def test_chunks_and_batches_have_the_same_bits(case):
    folder, config, token_ids, _ = case
    one = testing.Model(str(folder), "f32")
    expected = one.forward([(BLOCKS, 0, token_ids)])
    for sizes in ([1] * NUM_TOKENS, [50, 1, 1, 7, 20, 64, 7], [23, 2, 40, 85]):
        model, found, start = testing.Model(str(folder), "f32", num_threads=2), [], 0
        for size in sizes:
            found.append(
                model.forward([([7, 8, 9], 0, token_ids[:5]), (BLOCKS, start, token_ids[start : start + size])])
            )
            start += size
        found = np.concatenate([rows[5:] for rows in found])
        assert start == NUM_TOKENS and np.array_equal(found, expected)
        for layer in range(2 * config["num_layers"] // config["cli_factor"]):
            assert np.array_equal(
                model.index_keys(layer, BLOCKS, NUM_TOKENS), one.index_keys(layer, BLOCKS, NUM_TOKENS)
            )


def test_each_draft_token_selects_for_itself(case):
    """Generated tokens in one step have the bits of steps with one token each."""
    folder, config, token_ids, _ = case
    prompt = token_ids[:60]
    together, alone = (testing.Model(str(folder), "f32") for _ in range(2))
    for model in (together, alone):
        model.forward([(BLOCKS, 0, prompt)])
    found = together.forward([(BLOCKS, 60, token_ids[60:90])], num_generated=1)
    expected = [alone.forward([(BLOCKS, 60 + i, token_ids[60 + i : 61 + i])], num_generated=1)[0] for i in range(30)]
    assert np.array_equal(found, expected)


def test_topk_beyond_the_length_is_dense_attention(tmp_path):
    """Bit for bit: the same weights as LongCat-Flash-Lite."""
    # rms_norm_eps is Lite's fixed eps of the inner norms, so both models have the same norms.
    overrides = {"rms_norm_eps": 1e-6}
    sparse = SPARSE_VARIANTS["sparse"]["config_overrides"] | overrides
    config = make_checkpoint(tmp_path / "sparse", seed=3, dtype="BF16", config_overrides=sparse | {"index_topk": 150})
    make_checkpoint(tmp_path / "lite", seed=3, dtype="BF16", config_overrides=overrides)
    weights = {}
    for name, stored in read_safetensors(tmp_path / "sparse" / "model.safetensors").items():
        name = name.replace("oe_embed_tokens", "ngram_embeddings.embedders.")
        weights[name.replace("oe_embed_proj", "ngram_embeddings.post_projs.")] = stored
    names = list(read_safetensors(tmp_path / "lite" / "model.safetensors"))
    write_safetensors(tmp_path / "lite" / "model.safetensors", {name: weights[name] for name in names})
    token_ids = random_token_ids(3, NUM_TOKENS, config["vocab_size"])
    for kv_cache_dtype in ("f32", "bf16", "fp8", "int8"):
        found = []
        for kind in ("sparse", "lite"):
            model = testing.Model(str(tmp_path / kind), "bf16", kv_cache_dtype=kv_cache_dtype)
            prompt = model.forward([(BLOCKS, 0, token_ids[:100])])
            generated = [model.forward([(BLOCKS, p, [token_ids[p]])], num_generated=1) for p in range(100, NUM_TOKENS)]
            latents = [model.latents(i, BLOCKS, NUM_TOKENS) for i in range(2 * config["num_layers"])]
            found.append([prompt, *generated, *latents])
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_index_keys_are_stored_before_anything_is_selected(tmp_path):
    """A step that is too short to select stores the keys, too. The model looks at blocks of 1,024 tokens."""
    overrides = SPARSE_VARIANTS["sparse"]["config_overrides"] | {
        "index_topk": 1024,
        "index_local_tokens": 100,
        "max_position_embeddings": 2048,
    }
    config = make_checkpoint(tmp_path, seed=4, config_overrides=overrides)
    token_ids = random_token_ids(4, 1100, config["vocab_size"])
    blocks = list(range(1, 19))
    whole, parts = (testing.Model(str(tmp_path), "f32", max_tokens=1100) for _ in range(2))
    expected = whole.forward([(blocks, 0, token_ids)])
    for start, end in [(0, 700), (700, 1000), (1000, 1050), (1050, 1100)]:
        found = parts.forward([(blocks[: -(-end // 64)], start, token_ids[start:end])])
        assert np.array_equal(found, expected[start:end])


def test_int8_index_keys(case, tmp_path):
    """Keys of the first layer have the same input in every format. Scores of the stored keys give the selection."""
    original, config, token_ids, _ = case
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": 1}))
    shutil.copy(original / "model.safetensors", tmp_path)
    plain, int8 = (testing.Model(str(tmp_path), "f32", index_cache_dtype=kind) for kind in ("f32", "int8"))
    for model in (plain, int8):
        model.forward([(BLOCKS, 0, token_ids)])
    exact, stored = (model.index_keys(0, BLOCKS, NUM_TOKENS) for model in (plain, int8))
    scale = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert np.abs(stored - exact).max() > 0 and (np.abs(stored - exact) <= 0.501 * scale).all()
    if config["cli_factor"] == 1:
        return  # the last selection is that of the second attention
    heads, dim, topk = config["index_n_heads"], config["index_head_dim"], config["index_topk"]
    first, last = config["index_init_tokens"], config["index_local_tokens"]
    selections, flips = int8.last_selection(), 0
    queries = selections["queries"].reshape(-1, heads, dim).astype(np.float64)
    for p in range(topk, NUM_TOKENS):
        products = np.maximum(queries[p] @ stored[: p + 1].astype(np.float64).T, 0)
        scores = selections["weights"][p] @ products
        free = np.sort(scores[first : p + 1 - last])[::-1]
        kept = topk - first - last
        if free[kept - 1] - free[kept] > 1e-4 * np.sqrt(np.mean(scores**2)) or free[kept - 1] == 0:
            assert selections["selected"][p].tolist() == choose(scores, topk, first, last), f"position {p}"
        flips += len({*selections["selected"][p]} - {*plain.last_selection()["selected"][p]})
    print(f"{flips} of {topk * (NUM_TOKENS - topk)} slots differ from those of f32 keys")
    assert flips > 0


def test_int8_index_keys_need_an_indexer(tmp_path):
    make_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='index_cache_dtype="int8", but the checkpoint has dense attention'):
        testing.Model(str(tmp_path), "f32", index_cache_dtype="int8")


def test_nothing_else_is_read(case):
    """Free blocks hold NaN."""
    folder, _, token_ids, _ = case
    clean, poisoned = (testing.Model(str(folder), "f32") for _ in range(2))
    poisoned.poison()
    chunks = [(BLOCKS, 0, token_ids[:100]), ([6, 7], 0, token_ids[:70])]
    assert np.array_equal(clean.forward(chunks), poisoned.forward(chunks))
    more = [(BLOCKS, 100, token_ids[100:])]
    assert np.array_equal(clean.forward(more, num_generated=1), poisoned.forward(more, num_generated=1))


@pytest.mark.device
@pytest.mark.parametrize("num_generated", [0, 1], ids=["prompt", "generated"])
def test_cuda_kernels_equal_the_reference(case, num_generated):
    folder, _, token_ids, expected = case
    clear = clear_positions(expected)
    model = testing.DeviceModel(str(folder), EMULATED_F32, dtype="f32", kv_cache_dtype="f32")
    logits = model.forward([(BLOCKS, 0, token_ids)], num_generated=num_generated)
    assert np.abs(logits - expected.logits)[clear].max() <= LOGITS


# --- switches for open points ---------------------------------------------------------------------

SWITCHES = {
    "oe_divides_word": (True, False),
    "mla_norm_eps": (1e-5, 3e-3),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_config_json(tmp_path, name):
    """Either value equals the reference, the default is the first, and the two differ."""
    overrides = SPARSE_VARIANTS["sparse"]["config_overrides"]
    config = make_checkpoint(tmp_path, seed=2, config_overrides=overrides)
    token_ids = random_token_ids(2, NUM_TOKENS, config["vocab_size"])
    plain, found = testing.Model(str(tmp_path), "f32").forward([(BLOCKS, 0, token_ids)]), []
    for value in SWITCHES[name]:
        (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
        expected = SparseModel(tmp_path).trace(token_ids)
        clear = clear_positions(expected)
        assert clear.sum() > config["index_topk"]
        found.append(testing.Model(str(tmp_path), "f32").forward([(BLOCKS, 0, token_ids)]))
        assert np.abs(found[-1] - expected.logits)[clear].max() <= LOGITS
    assert np.array_equal(found[0], plain)
    assert np.abs(found[1] - plain).max() > 10 * LOGITS


def test_the_pattern_of_selections(tmp_path):
    """ "CSCS" is cli_factor 2, bit for bit. Other patterns equal the reference, also where a layer begins with "S"."""
    overrides = SPARSE_VARIANTS["sparse"]["config_overrides"] | {"cli_factor": 1, "num_layers": 2}
    config = make_checkpoint(tmp_path, seed=2, config_overrides=overrides)
    token_ids = random_token_ids(2, NUM_TOKENS, config["vocab_size"])

    def logits_of(**fields):
        changed = {name: value for name, value in (config | fields).items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        model = testing.Model(str(tmp_path), "f32")
        # Two chunks: the second one scores the keys that the first one left.
        chunks = [(BLOCKS, 0, token_ids[:-20]), (BLOCKS, NUM_TOKENS - 20, token_ids[-20:])]
        return np.concatenate([model.forward([chunk]) for chunk in chunks])

    logits = {"CSCS": logits_of(cli_factor=2)}
    assert np.array_equal(logits_of(cli_factor=2, index_topk_pattern="CSCS"), logits["CSCS"])
    assert np.array_equal(logits_of(cli_factor=None, index_topk_pattern=[*"CSCS"]), logits["CSCS"])
    for pattern in ("CCCC", "CSSC", "CSSS"):
        logits[pattern] = logits_of(cli_factor=None, index_topk_pattern=pattern)
        expected = SparseModel(tmp_path).trace(token_ids)
        clear = clear_positions(expected)
        assert clear.sum() > config["index_topk"]
        assert np.abs(logits[pattern] - expected.logits)[clear].max() <= LOGITS, pattern
        assert np.abs(logits[pattern] - logits["CSCS"]).max() > 10 * LOGITS, pattern


# --- MTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"dsa_mtp_cli": True}, {"dsa_mtp_cli": False}, {"mtp_shares_embed_tokens": True}],
    ids=["shared", "own", "words of the model"],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param(EMULATED_F32, marks=pytest.mark.device)])
def test_drafts_equal_the_reference(case, tmp_path, device, fields):
    """Three draft tokens; those after the first use its selection and the positions written since, or their own."""
    original, config, token_ids, expected = case
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    (folder / "config.json").write_text(json.dumps(config | fields))
    clear = clear_positions(expected)
    reference = SparseModel(folder)
    for length in (config["index_topk"] - 1, config["index_topk"] + 1, int(clear.sum())):
        prompt = token_ids[:length]
        logits, ids = reference.drafts(prompt, expected.hidden[:length], 3)
        model = testing.DeviceModel(str(folder), device, dtype="f32", kv_cache_dtype="f32", with_mtp=True)
        model.forward([(BLOCKS, 0, prompt)])
        found = [model.forward_mtp([(BLOCKS, 0, [*prompt[1:], prompt[0]])])[-1]]
        for i in range(2):
            row = length - 1 if i == 0 else 0
            found.append(model.forward_mtp([(BLOCKS, length + i, [ids[i]])], num_generated=1, rows=[row])[0])
        assert np.abs(np.array(found) - logits).max() <= LOGITS, length


def test_the_mtp_layer_reads_either_embedding(case, tmp_path):
    """Its own table, unless config.json says that it shares the model's."""
    original, config, token_ids, _ = case
    found = []
    for value in (None, False, True):
        folder = Path(shutil.copytree(original, tmp_path / str(value)))
        fields = {} if value is None else {"mtp_shares_embed_tokens": value}
        (folder / "config.json").write_text(json.dumps(config | fields))
        model = testing.DeviceModel(str(folder), "cpu", dtype="f32", kv_cache_dtype="f32", with_mtp=True)
        model.forward([(BLOCKS, 0, token_ids[:5])])
        found.append(model.forward_mtp([(BLOCKS, 0, token_ids[1:6])]))
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[2] - found[1]).max() > 10 * LOGITS


# --- vectors of other implementations -------------------------------------------------------------


def test_published_vectors(tmp_path):
    """LONGCAT_SPARSE_VECTORS names a folder with micro/ and micro.npz: a checkpoint, and float64 results."""
    folder = os.environ.get("LONGCAT_SPARSE_VECTORS")
    if folder is None:
        pytest.skip("LONGCAT_SPARSE_VECTORS names no folder")
    micro, vectors = Path(folder, "micro"), np.load(Path(folder, "micro.npz"))
    config = read_config(micro)
    model = testing.Model(str(micro), "f32")
    for name in ("main", "short"):
        token_ids = vectors[f"{name}.tokens"].tolist()
        error = np.abs(model.forward([(BLOCKS, 0, token_ids)]) - vectors[f"{name}.logits"]).max()
        print(f"{name}.logits {error:.1e}")
        assert error <= 1e-4
    token_ids = vectors["main.tokens"].tolist()
    model = testing.Model(str(micro), "f32")
    model.forward([(BLOCKS, 0, token_ids)])
    assert np.array_equal(model.last_ngram_ids().T, vectors["main.ngram_rows"])
    heads, dim, topk = config["index_n_heads"], config["index_head_dim"], config["index_topk"]
    for layer in range(config["num_layers"]):
        # The indexer's values of a layer are those of a model that ends with it.
        folder = tmp_path / str(layer)
        shutil.copytree(micro, folder)
        (folder / "config.json").write_text(json.dumps(config | {"num_layers": layer + 1}))
        model = testing.Model(str(folder), "f32")
        model.forward([(BLOCKS, 0, token_ids)])
        found, keys = model.last_selection(), model.index_keys(layer, BLOCKS, len(token_ids))
        weights = found["weights"] * (heads * dim) ** -0.5
        queries = found["queries"].reshape(-1, heads, dim) * np.sqrt(config["q_lora_rank"] / config["hidden_size"])
        rule = (topk, config["index_init_tokens"], config["index_local_tokens"], 1.0)
        _, scores = testing.Ops().select_positions(keys, queries, weights, *rule)
        stored = {part: vectors[f"main.layer{layer}.{part}"] for part in ("k", "w", "q_last", "score", "sel")}
        visible = np.isfinite(stored["score"])
        for part, difference in {
            "k": keys - stored["k"],
            "w": weights - stored["w"],
            "q_last": queries[-2:] - stored["q_last"],
            "score": np.where(visible, scores - np.where(visible, stored["score"], 0), 0),
        }.items():
            print(f"main.layer{layer}.{part} {np.abs(difference).max():.1e}")
            assert np.abs(difference).max() <= 1e-4
        assert np.array_equal(found["selected"][topk:], stored["sel"][topk:])
    model = testing.DeviceModel(str(micro), "cpu", dtype="f32", kv_cache_dtype="f32", with_mtp=True)
    model.forward([(BLOCKS, 0, token_ids)])
    drafts = vectors["main.mtp_tokens"].tolist()
    logits = [model.forward_mtp([(BLOCKS, 0, [*token_ids[1:], token_ids[0]])])[-1]]
    for i in range(2):
        row = len(token_ids) - 1 if i == 0 else 0
        start = len(token_ids) + i
        logits.append(model.forward_mtp([(BLOCKS, start, [drafts[i]])], num_generated=1, rows=[row])[0])
    error = np.abs(np.array(logits) - vectors["main.mtp_logits"]).max()
    print(f"main.mtp_logits {error:.1e}")
    assert error <= 1e-4 and [int(row.argmax()) for row in logits] == drafts
