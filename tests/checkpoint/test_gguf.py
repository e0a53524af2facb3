"""`longcat convert MODEL.gguf`: which tensors become which, in which formats, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat.checkpoint.convert import PRESETS
from longcat.checkpoint.sources.gguf.blocks import BLOCKS
from longcat.checkpoint.sources.gguf.model import GgufModel
from longcat.checkpoint.sources.importing import import_weights
from longcat.cli import main

from support.gguf_files import CONFIG, TYPES, config_of, make_model, value, vocabulary

IDS = [5, 9, 2, 33, 7, 60, 12, 4, 21, 90] * 4
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "ngram_embd.5.weight": "model.ngram_embeddings.embedders.5.weight",
    "ngram_proj.0.weight": "model.ngram_embeddings.post_projs.0.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.0.weight",
    "blk.1.ffn_norm.weight": "model.layers.0.post_attention_layernorm.1.weight",
    "blk.1.attn_q_b.weight": "model.layers.0.self_attn.1.q_b_proj.weight",
    "blk.0.attn_kv_a_mqa.weight": "model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight",
    "blk.0.ffn_gate_inp.weight": "model.layers.0.mlp.router.classifier.weight",
    "blk.0.exp_probs_b.bias": "model.layers.0.mlp.router.e_score_correction_bias",
    "blk.0.ffn_up_shexp.weight": "model.layers.0.mlps.0.up_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.0.mlps.1.down_proj.weight",
    "blk.2.nextn.eh_proj.weight": "model.mtp.layers.0.eh_proj.weight",
    "blk.2.nextn.hnorm.weight": "model.mtp.layers.0.hnorm.m.weight",
    "blk.2.nextn.shared_head_norm.weight": "model.mtp.norm.weight",
    "blk.2.ffn_gate.weight": "model.mtp.layers.0.transformer_layer.mlp.gate_proj.weight",
    "blk.2.attn_output.weight": "model.mtp.layers.0.self_attn.o_proj.weight",
}


def values_of(tensors) -> dict[str, np.ndarray]:
    """name -> values, of what make_model wrote."""
    out = {}
    for name, kind, shape, data in tensors:
        block = BLOCKS[TYPES[kind][0]]
        out[name] = block.values(np.frombuffer(data, np.uint8).reshape(-1, block.bytes)).reshape(shape)
    return out


def expected_shapes(folder) -> dict[str, tuple[int, ...]]:
    """Our name -> shape, of the tensors that config.json asks for."""
    config = (folder / "config.json").read_text()
    return {name: shape for name, shape, _ in _core.expected_tensors(config) + _core.expected_mtp_tensors(config)}


def stored(folder) -> dict[str, tuple[str, np.ndarray]]:
    """our name -> (format, values), of a converted folder."""
    shapes, checkpoint, out = expected_shapes(folder), _core.Checkpoint(str(folder)), {}
    files = [name for name, _ in checkpoint.shards()]
    for name, dtype, shape, shard, begin, end in checkpoint.tensors():
        raw = np.fromfile(folder / files[shard], np.uint8, end - begin, offset=begin)
        if dtype == "U8":
            name, _, format = name.rpartition(".")
            known = next(shapes[spelling] for spelling in (name, _core.other_spelling(name)) if spelling in shapes)
            out[name] = format, _core.unpack(raw.reshape(shape), format, *known)
        elif dtype == "BF16":
            out[name] = dtype, (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        else:
            out[name] = dtype, raw.view(np.float16 if dtype == "F16" else np.float32).reshape(shape)
    return out


def logits(folder, **options):
    with longcat.Engine(folder, **options) as engine:
        return engine.forward(IDS)


@pytest.mark.parametrize("sparse", [False, True])
def test_names_shapes_and_values(tmp_path, sparse):
    kinds = {"ffn_down_exps": "Q4_0", "ngram_embd": "Q4_0", "attn_k_b": "Q5_0", "ffn_gate_inp": "F32", "indexer": "F16"}
    made = make_model(
        tmp_path / "m.gguf",
        lambda name: next((kind for part, kind in kinds.items() if part in name), "Q8_0"),
        sparse=sparse,
        mtp=True,
    )
    expected = values_of(made)
    import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    found = stored(tmp_path / "out")
    assert set(found) | {_core.other_spelling(name) for name in found} >= set(expected_shapes(tmp_path / "out"))
    for name, our_name in NAMES.items():
        if sparse:
            our_name = _core.other_spelling(our_name) if "ngram_" in our_name else our_name
        assert (found[our_name][1] == expected[name]).all(), name
    for expert in range(3):
        format, values = found[f"model.layers.0.mlp.experts.{expert}.down_proj.weight"]
        assert format == "int4_x8_f16" and (values == expected["blk.0.ffn_down_exps.weight"][expert]).all()
    kv = np.concatenate(
        [expected["blk.1.attn_k_b.weight"].transpose(0, 2, 1), expected["blk.1.attn_v_b.weight"]], axis=1
    )
    assert (found["model.layers.0.self_attn.1.kv_b_proj.weight"][1] == kv.reshape(-1, 64)).all()
    if sparse:
        indexer = "model.layers.0.self_attn.0.indexer"
        assert (found[f"{indexer}.wq_b.weight"][1] == expected["blk.0.indexer.attn_q_b.weight"]).all()
        assert (found[f"{indexer}.weights_proj.weight"][1] == expected["blk.0.indexer.proj.weight"]).all()
        assert config_of(tmp_path / "out")["attention_method"] == "LSA"
    assert np.isfinite(logits(tmp_path / "out")).all()


@pytest.mark.parametrize(
    "kind,matrix,table",
    [
        *[
            ("Q8_0", "int8_x8_f16", "int8_b32"),
            ("Q4_0", "int4_x8_f16", "int4_b32"),
            ("Q5_0", "int8_x8_f16", "int8_b32"),
        ],
        *[
            ("IQ4_NL", "int8_x8_f16", "int8_b32"),
            ("BF16", "BF16", "BF16"),
            ("F16", "F16", "F16"),
            ("F32", "F32", "F32"),
        ],
    ],
)
def test_what_is_exact_stays_so(tmp_path, kind, matrix, table):
    expected = values_of(make_model(tmp_path / "m.gguf", lambda name: kind))
    made = import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    found = stored(tmp_path / "out")
    assert found["lm_head.weight"][0] == matrix and found["model.embed_tokens.weight"][0] == table
    for name, our_name in NAMES.items():
        if name in expected:
            assert (found[our_name][1] == expected[name]).all(), name
    assert not any(added.error for added in made.added.values())


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_other_types_are_rounded_to_int8_and_the_error_is_told(tmp_path, kind):
    def type_of(name):
        return kind if "ffn" in name or name.startswith(("output", "token")) else "Q8_0"

    expected = values_of(make_model(tmp_path / "m.gguf", type_of))
    made = import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    found = stored(tmp_path / "out")
    for name in ("output.weight", "token_embd.weight", "blk.1.ffn_down.weight"):
        before, after = expected[name], found[NAMES[name]][1]
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert error == 0 if kind == "Q3_K" else 0 < error < 0.012, name
    if kind == "Q3_K":  # a grid of 8 bits, with its sign turned
        assert found["lm_head.weight"][0] == "int8_x8_f16"
        return
    assert found["lm_head.weight"][0] == "int8_x8"
    assert 0.001 < made.added[kind, "int8_x8"].relative < 0.012


def test_presets_round_and_keep_grids_that_are_small_enough(tmp_path):
    kinds = {"ffn": "Q4_0", "output": "Q8_0", "embd": "Q8_0"}

    def type_of(name):
        return next((kind for part, kind in kinds.items() if part in name), "Q8_0")

    make_model(tmp_path / "m.gguf", type_of)
    for preset in ("int4", "int8", "bf16"):
        import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / preset, PRESETS[preset])
    formats = {preset: {name: format for name, (format, _) in stored(tmp_path / preset).items()} for preset in PRESETS}
    ffn, head = "model.layers.0.mlps.0.up_proj.weight", "lm_head.weight"
    q_a, kv_b = "model.layers.0.self_attn.0.q_a_proj.weight", "model.layers.0.self_attn.0.kv_b_proj.weight"
    table = "model.ngram_embeddings.embedders.0.weight"
    assert [formats["int4"][name] for name in (ffn, head, q_a, table)] == [
        *["int4_x8_f16", "int8_x8_f16", "int4_x8", "int4_row"],
    ]
    assert [formats["int8"][name] for name in (ffn, head, q_a, table)] == [
        *["int4_x8_f16", "int8_x8_f16", "int8_x8_f16", "int8_b32"],
    ]
    assert [formats["bf16"][name] for name in (ffn, head, kv_b, table)] == ["bf16_x8", "bf16_x8", "BF16", "int8_b32"]
    whole = logits(tmp_path / "int8")
    for preset, close in (("bf16", 0.02), ("int4", 0.3)):
        difference = np.linalg.norm(logits(tmp_path / preset) - whole, axis=1) / np.linalg.norm(whole, axis=1)
        assert np.median(difference) < close


def test_a_model_in_several_files_is_the_same(tmp_path):
    make_model(tmp_path / "one.gguf")
    make_model(tmp_path / "m", files=3)
    for name in ("one.gguf", "m-00001-of-00003.gguf"):
        import_weights(GgufModel(tmp_path / name), tmp_path / name[:3])
    one, three = (stored(tmp_path / name) for name in ("one", "m-0"))
    assert one.keys() == three.keys() and all((one[name][1] == three[name][1]).all() for name in one)


def test_config(tmp_path):
    make_model(tmp_path / "m.gguf", mtp=True, metadata=vocabulary())
    config = json.loads(GgufModel(tmp_path / "m.gguf").folder_files["config.json"])
    assert config["architectures"] == ["LongcatFlashNgramForCausalLM"] and config["num_layers"] == 1
    assert (config["qk_nope_head_dim"], config["v_head_dim"]) == (32, 32) and config["rms_norm_eps"] == 1e-5
    assert (config["n_routed_experts"], config["zero_expert_num"], config["moe_topk"]) == (3, 1, 2)
    assert config["rope_scaling"] == {
        **{"rope_type": "yarn", "factor": 10.0, "original_max_position_embeddings": 64},
        **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    }
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 3)


def test_a_pruned_model_has_the_experts_of_its_tensors(tmp_path):
    make_model(tmp_path / "m.gguf", changes={"expert_count": 2})
    content = (tmp_path / "m.gguf").read_bytes()
    key = b"longcat-flash-ngram.expert_count"
    at = content.index(key) + len(key) + 4
    (tmp_path / "m.gguf").write_bytes(content[:at] + (3).to_bytes(4, "little") + content[at + 4 :])
    import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["n_routed_experts"], config["zero_expert_num"]) == (2, 1)


def test_an_mtp_layer_that_is_not_whole_is_left_out(tmp_path):
    made = make_model(tmp_path / "m.gguf", mtp=True)
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content.replace(b"blk.2.nextn.enorm.weight", b"blk.2.nextn.other.weight"))
    result = import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    assert not any("mtp" in name for name in stored(tmp_path / "out"))
    count = sum(name.startswith("blk.2.") for name, *_ in made) - 1  # kv_b_proj is two of the file
    assert f"the MTP layer is left out: it has {count - 1} of {count} tensors" in result.notes
    assert np.isfinite(logits(tmp_path / "out")).all()


def test_text(tmp_path):
    make_model(tmp_path / "m.gguf", metadata=vocabulary())
    import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    with longcat.Engine(tmp_path / "out") as engine:
        ids = engine.tokenizer.encode("the 12。<longcat_7>")
        assert engine.tokenizer.decode(ids) == "the 12。<longcat_7>"
        texts = [engine.tokenizer.token_bytes(id).decode("latin-1") for id in ids[:4]]
        assert texts == ["the", " ", "1", "2"]  # digits are apart, so that their merge does not apply
        assert ids[-1] == vocabulary()["tokenizer.ggml.tokens"].index("<longcat_7>")
        assert engine.chat([{"role": "user", "content": "the"}], max_tokens=2).message["role"] == "assistant"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_k"] == 4
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == vocabulary()["tokenizer.chat_template"]


@pytest.mark.parametrize(
    "changes,line",
    [
        ({"tokenizer.ggml.pre": "odd"}, 'has tokenizer.ggml.pre "odd"; expected one of gpt-2, qwen2, longcat'),
        ({"tokenizer.ggml.model": "llama"}, 'has tokenizer.ggml.model "llama"; expected gpt2'),
        ({"tokenizer.ggml.merges": ["t h", "q z"]}, 'has merge "q z"; expected two tokens that make a third'),
        ({"tokenizer.ggml.token_type": [1, 2]}, "token_type of 2 elements; expected 288, as tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 288}, 'has token "a" twice'),
        ({"tokenizer.ggml.eos_token_id": 288}, "has tokenizer.ggml.eos_token_id 288; expected 0 to 287"),
    ],
)
def test_text_that_is_not_understood_is_refused(tmp_path, changes, line):
    make_model(tmp_path / "m.gguf", metadata=vocabulary() | changes)
    with pytest.raises(longcat.Error, match=line):
        GgufModel(tmp_path / "m.gguf")


NGRAM = "longcat-flash-ngram"


@pytest.mark.parametrize(
    "metadata,line",
    [
        ({"general.architecture": "llama"}, 'has general.architecture "llama"; expected longcat-flash-ngram or'),
        ({f"{NGRAM}.block_count": 3}, r"has longcat-flash-ngram.block_count 3; expected two blocks a layer"),
        ({f"{NGRAM}.block_count": "two"}, r'has longcat-flash-ngram.block_count "two"; expected an integer'),
        ({f"{NGRAM}.block_count": 4}, "tensors of .* missing: model.layers.1.self_attn.0.q_a_proj.weight"),
        ({f"{NGRAM}.attention.head_count": 4}, "kv_b_proj.weight of 2 heads of width 32; expected 4 of 32"),
        ({f"{NGRAM}.feed_forward_length": 128}, r'"model.layers.0.mlps.0.gate_proj.weight" is \[256, 256\]; expected'),
        (
            {f"{NGRAM}.rope.scaling.type": "linear"},
            'has longcat-flash-ngram.rope.scaling.type "linear"; expected "yarn"',
        ),
        ({f"{NGRAM}.expert_weights_scale": float("nan")}, "expert_weights_scale nan; expected a number"),
        ({f"{NGRAM}.ngram.split_num": value(-1, "i32")}, "ngram.split_num -1; expected 0 to"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(tmp_path, metadata, line):
    make_model(tmp_path / "m.gguf", metadata=metadata)
    with pytest.raises(longcat.Error, match=line) as caught:
        import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_values_that_are_not_finite_are_refused(tmp_path):
    made = make_model(tmp_path / "m.gguf", lambda name: "Q4_K" if "shexp" in name else "Q8_0")
    content = (tmp_path / "m.gguf").read_bytes()
    for name, line in (("output.weight", '"lm_head.weight", row 1'), ("blk.0.ffn_up_shexp.weight", "up_proj.weight")):
        [data] = [data for tensor, *_, data in made if tensor == name]
        at = content.index(data) + len(data) // 256 + (34 * 8 - len(data) // 256 if "output" in name else 0)
        (tmp_path / "bad.gguf").write_bytes(content[:at] + b"\x00\x7c" + content[at + 2 :])
        with pytest.raises(longcat.Error, match=line + ".* is not finite; expected finite values"):
            import_weights(GgufModel(tmp_path / "bad.gguf"), tmp_path / "out")
        shutil.rmtree(tmp_path / "out.partial")


def test_an_interrupted_run_goes_on(tmp_path):
    make_model(tmp_path / "m.gguf")

    def stop_in_the_middle(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    whole = import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "whole", max_shard_bytes=300_000)
    with pytest.raises(KeyboardInterrupt):
        import_weights(
            GgufModel(tmp_path / "m.gguf"), tmp_path / "out", max_shard_bytes=300_000, progress=stop_in_the_middle
        )
    with pytest.raises(longcat.Error, match="belongs to an interrupted run with another source or other options"):
        import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out", PRESETS["int4"], max_shard_bytes=300_000)
    made = import_weights(GgufModel(tmp_path / "m.gguf"), tmp_path / "out", max_shard_bytes=300_000)
    assert 0 < made.resumed_files < made.files == whole.files
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_command(tmp_path, capsys):
    make_model(tmp_path / "m.gguf", lambda name: "Q4_K" if "ffn" in name else "Q8_0", metadata=vocabulary())
    model, out = str(tmp_path / "m.gguf"), str(tmp_path / "out")
    assert main(["convert", model, out]) == 0
    printed = capsys.readouterr().out
    assert "Q8_0 -> int8_x8_f16: exact (" in printed and "Q4_K -> int8_x8: adds a relative RMS error of 0." in printed
    assert main(["verify", out]) == 0
    assert main(["convert", model, str(tmp_path / "int4"), "--quant", "int4", "--tables", "keep"]) == 0
    printed = capsys.readouterr().out
    assert "Q8_0 -> int8_b32: exact (9 tensors)" in printed and "Q4_K -> int4_x8: adds" in printed
    assert main(["convert", model, str(tmp_path / "no"), "--quant", "int4", "--calibrate", model]) == 2
    assert "--calibrate needs a checkpoint in the Hugging Face layout" in capsys.readouterr().err
    assert main(["convert", out, str(tmp_path / "no")]) == 2
    assert "--quant is missing; expected bf16, int8 or int4" in capsys.readouterr().err
    for command in ("plan", "verify"):
        assert main([command, model]) == 1
        assert (
            f"is a GGUF file; expected a checkpoint folder. Make one: longcat convert {model}"
            in capsys.readouterr().err
        )
    assert main(["doctor", model]) == 1
    assert f"-> longcat convert {model} FOLDER" in capsys.readouterr().out


def test_an_engine_converts_a_file_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "m.gguf"
    make_model(model)
    import_weights(GgufModel(model), tmp_path / "out")
    first = logits(model)
    assert (first == logits(tmp_path / "out")).all()
    assert capsys.readouterr().err.startswith(f"[gguf] converting {model} (")
    assert (logits(model) == first).all() and capsys.readouterr().err == ""
    [folder] = [path for path in (tmp_path / "cache" / "longcat").iterdir() if path.is_dir()]
    assert folder.name.startswith("m-") and (folder / "config.json").exists()
    make_model(model, seed=1)
    assert not (logits(model) == first).all()
    assert len([path for path in (tmp_path / "cache" / "longcat").iterdir() if path.is_dir()]) == 2


def test_sizes_of_the_test_model():
    assert CONFIG["vocab_size"] == len(vocabulary()["tokenizer.ggml.tokens"])


def test_files_of_the_other_engine(tmp_path):
    """LONGCAT_GGUF_SAMPLES names a folder with s-TYPE.gguf, and logits.npz: the logits of the engine that wrote them.

    That engine rounds the inputs of products to 8 bits.
    """
    folder = os.environ.get("LONGCAT_GGUF_SAMPLES")
    if folder is None:
        pytest.skip("LONGCAT_GGUF_SAMPLES names no folder")
    logits_of = np.load(Path(folder, "logits.npz"))
    for kind, least in (("q8_0", 0.999), ("q4_0", 0.999), ("q4_K_M", 0.99)):
        model = GgufModel(Path(folder, f"s-{kind}.gguf"))
        made = import_weights(model, tmp_path / kind)
        found = stored(tmp_path / kind)
        exact = [name for name, tensor in model.tensors().items() if tensor.grid or "F" in found[name][0]]
        for name in exact:
            rows = model.rows(name, 0, len(found[name][1]) if found[name][1].ndim == 2 else 1)
            assert (found[name][1] == rows.reshape(found[name][1].shape)).all(), name
        cosines = []
        with longcat.Engine(tmp_path / kind, dtype="f32") as engine:
            for i in range(3):
                ours = engine.forward(logits_of[f"tokens{i}"].tolist())[logits_of[f"rows{i}"]]
                theirs = logits_of[f"{kind}.logits{i}"]
                lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
                cosines += ((ours * theirs).sum(axis=1) / lengths).tolist()
        added = {f"{read} -> {written}": f"{sums.relative:.5f}" for (read, written), sums in made.added.items()}
        print(f"{kind}: median cosine {np.median(cosines):.5f}, 10th percentile {np.percentile(cosines, 10):.5f}")
        print(f"  {len(exact)} of {len(found)} tensors exact; {added}")
        assert np.median(cosines) >= least
