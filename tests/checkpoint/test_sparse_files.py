"""Checkpoint files of LongCat-Flash-Lite-Sparse: names in both spellings, dtypes, and what verify and convert make."""

import json

import numpy as np
import pytest
from longcat import Error, _core
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint
from longcat.checkpoint.random_weights import preset_config, write_checkpoint
from longcat.checkpoint.verify import verify_checkpoint
from longcat.cli import main
from longcat.planning.plan import plan

from support.checkpoints import read_safetensors, write_safetensors

TOKENS = list(range(4, 60))
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The preset tiny-sparse, as `longcat make-checkpoint` writes it."""
    folder = tmp_path_factory.mktemp("sparse") / "model"
    assert main(["make-checkpoint", str(folder), "--preset", "tiny-sparse"]) == 0
    return folder


def logits(folder, dtype="f32"):
    return testing.Model(str(folder), dtype).forward([([1], 0, TOKENS)])


def changed(made, folder, change):
    """A copy whose tensors are `change` of the originals: name -> (dtype, shape, bytes)."""
    folder.mkdir()
    (folder / "config.json").write_text((made / "config.json").read_text())
    write_safetensors(folder / FILE, change(read_safetensors(made / FILE)))
    return folder


def test_published_names_and_dtypes(made):
    tensors = read_safetensors(made / FILE)
    assert "model.oe_embed_tokens11.weight" in tensors and not any("ngram_embeddings" in name for name in tensors)
    f32 = {name for name, (dtype, *_) in tensors.items() if dtype == "F32"}
    assert f32 == {name for name in tensors if ".router." in name or name.endswith("weights_proj.weight")}
    assert np.isfinite(logits(made)).all()


def test_names_of_lite(made, tmp_path):
    """A copy that was saved again may spell the N-gram tables as Lite does."""

    def rename(tensors):
        return {
            name.replace("oe_embed_tokens", "ngram_embeddings.embedders.").replace(
                "oe_embed_proj", "ngram_embeddings.post_projs."
            ): tensor
            for name, tensor in tensors.items()
        }

    folder = changed(made, tmp_path / "renamed", rename)
    assert np.array_equal(logits(folder), logits(made))
    assert _core.Checkpoint(str(folder)).check_tensors() == []
    assert [check for check in verify_checkpoint(folder).checks if check.status != "ok"] == [
        check for check in verify_checkpoint(made).checks if check.status != "ok"
    ]
    for source, name in [(made, "converted"), (folder, "renamed-converted")]:
        convert_checkpoint(source, tmp_path / name, PRESETS["int4"])
    assert np.array_equal(logits(tmp_path / "converted"), logits(tmp_path / "renamed-converted"))
    assert (
        plan(tmp_path / "converted", bandwidth=1e9).parts == plan(tmp_path / "renamed-converted", bandwidth=1e9).parts
    )


def test_both_spellings_in_one_checkpoint(made, tmp_path):
    folder = changed(
        made,
        tmp_path / "both",
        lambda tensors: (
            tensors | {"model.ngram_embeddings.embedders.3.weight": tensors["model.oe_embed_tokens3.weight"]}
        ),
    )
    assert "model.ngram_embeddings.embedders.3.weight" in _core.Checkpoint(str(folder)).check_tensors()[0]


def test_f32_is_not_narrowed(made, tmp_path):
    """The router and weights_proj keep their f32 values whatever the working dtype; bf16 files are accepted."""

    def rounded(tensors):
        out = {}
        for name, (dtype, shape, raw) in tensors.items():
            if dtype == "F32":
                raw = (np.frombuffer(raw, np.uint32) >> 16).astype(np.uint16).tobytes()
                dtype = "BF16"
            out[name] = (dtype, shape, raw)
        return out

    narrow = changed(made, tmp_path / "narrow", rounded)
    for dtype in ("f32", "bf16"):
        assert not np.array_equal(logits(narrow, dtype), logits(made, dtype))

    def rounded_in_f32(tensors):
        return {
            name: (dtype, shape, (np.frombuffer(raw, np.uint32) & 0xFFFF0000).tobytes() if dtype == "F32" else raw)
            for name, (dtype, shape, raw) in tensors.items()
        }

    same = changed(made, tmp_path / "same", rounded_in_f32)
    assert np.array_equal(logits(narrow), logits(same))


def test_indexers_are_never_packed(made, tmp_path):
    convert_checkpoint(made, tmp_path / "out", PRESETS["int4"])
    tensors = read_safetensors(tmp_path / "out" / FILE)
    source = read_safetensors(made / FILE)
    indexers = [name for name in source if ".indexer." in name]
    assert len(indexers) == 8 and all(tensors[name] == source[name] for name in indexers)
    assert "model.oe_embed_tokens0.weight.int4_row" in tensors


def test_missing_and_misshapen_tensors_are_named(made, tmp_path):
    def broken(tensors):
        del tensors["model.layers.1.self_attn.0.indexer.wk.weight"]
        dtype, shape, raw = tensors["model.oe_embed_tokens2.weight"]
        return tensors | {"model.oe_embed_tokens2.weight": (dtype, (shape[0] - 1, shape[1]), raw[: -2 * shape[1]])}

    folder = changed(made, tmp_path / "broken", broken)
    with pytest.raises(Error, match=r"2 tensors .*oe_embed_tokens2.weight\" is .*indexer.wk.weight\" .* is missing"):
        testing.Model(str(folder))


def test_an_indexer_without_its_config_is_refused(made, tmp_path):
    """Dense attention would compute something else without a word."""
    config = preset_config("tiny")
    write_checkpoint(tmp_path / "lite", config)
    tensors = read_safetensors(made / FILE)
    indexers = {name: tensor for name, tensor in tensors.items() if ".indexer." in name}
    write_safetensors(tmp_path / "lite" / FILE, read_safetensors(tmp_path / "lite" / FILE) | indexers)
    with pytest.raises(Error, match=r"has .*\.indexer\..*describes dense attention; expected attention_method"):
        testing.Model(str(tmp_path / "lite"))


def test_verify_tells_the_facts(made):
    report = verify_checkpoint(made, headers_only=True)
    facts = {fact.topic: fact.found for fact in report.facts}
    assert report.ok and "index_topk 32, of these the first 2 and the last 12" in facts["sparse attention"]
    assert facts["N-gram tables"].startswith("12 tables") and facts["other config fields"] == "none"


def test_mtp_of_the_preset(tmp_path):
    write_checkpoint(tmp_path / "m", preset_config("tiny-sparse"), mtp=True)
    assert _core.Checkpoint(str(tmp_path / "m")).check_tensors(True) == []
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert len(_core.expected_mtp_tensors(json.dumps(config))) == 21
