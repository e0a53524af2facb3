"""config.json: every published spelling is read, relatives are refused by name, nonsense is listed."""

import json
import math
import re

import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.random_weights import LITE_CONFIG as LITE
from longcat.checkpoint.random_weights import LITE_SPARSE_CONFIG as LITE_SPARSE
from longcat.checkpoint.random_weights import PRESETS

from support.checkpoints import TINY_CONFIG, VARIANTS, make_config

DROP = object()
NGRAM = ("ngram_vocab_size_ratio", "emb_neighbor_num", "emb_split_num")

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def changed(base=TINY_CONFIG, /, **fields) -> str:
    config = {**base, **fields}
    return json.dumps({name: value for name, value in config.items() if value is not DROP})


def read(base=TINY_CONFIG, /, **fields) -> dict:
    return testing.parse_model_config(changed(base, **fields))


# The published figures of LongCat-Flash-Lite, word by word of its config.json.
PUBLISHED = {
    "vocab_size": 131072, "hidden_size": 3072, "num_layers": 14, "num_attention_heads": 32, "num_key_value_heads": 32,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "ffn_hidden_size": 6144, "expert_ffn_hidden_size": 1024, "n_routed_experts": 256, "zero_expert_num": 128,
    "zero_expert_type": "identity", "moe_topk": 12, "routed_scaling_factor": 6.0, "norm_topk_prob": False,
    "router_bias": False, "attention_bias": False, "attention_dropout": 0.0, "attention_method": "MLA",
    "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 5000000.0, "max_position_embeddings": 327680, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 3, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "ngram_vocab_size_ratio": 78,
    "emb_neighbor_num": 4, "emb_split_num": 4, "use_cache": True, "initializer_range": 0.02,
    "architectures": ["LongcatFlashNgramForCausalLM"],
    "rope_scaling": {"rope_type": "yarn", "factor": 10, "original_max_position_embeddings": 32768, "beta_fast": 32,
                     "beta_slow": 1, "mscale": 1, "mscale_all_dim": 1},
}  # fmt: skip


def test_the_lite_config_is_the_published_one():
    assert LITE == PUBLISHED


def test_lite_has_the_published_number_of_parameters():
    """68.5 billion of the text model, of which the N-gram tables hold 31.4, and half a billion for drafts."""
    sizes = {name: math.prod(shape) for name, shape, _ in _core.expected_tensors(json.dumps(LITE))}
    assert (len(sizes), sum(sizes.values())) == (11143, 68_562_465_024)
    assert sum(size for name, size in sizes.items() if ".embedders." in name) == 31_406_985_216
    assert sum(math.prod(shape) for _, shape, _ in _core.expected_mtp_tensors(json.dumps(LITE))) == 510_870_528


def test_lite():
    config = read(LITE)
    for name in set(config) & set(LITE) - {"torch_dtype"}:
        assert config[name] == LITE[name], name
    assert config["architecture"] == "LongcatFlashNgramForCausalLM" and config["torch_dtype"] == "BF16"
    assert config["ngram"] == {"table_rows": 10223616, "emb_neighbor_num": 4, "emb_split_num": 4}
    assert config["yarn"] == {
        "factor": 10, "original_max_position_embeddings": 32768, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1, "mscale_all_dim": 1, "attention_factor": None, "truncate": True,
    }  # fmt: skip
    assert not config["fp8_blocks"] and config["warnings"] == []


def test_flash_chat():
    config = read(
        LITE,
        architectures=["LongcatFlashForCausalLM"],
        model_type="longcat_flash",
        hidden_size=6144,
        num_layers=28,
        num_attention_heads=64,
        n_routed_experts=512,
        zero_expert_num=256,
        rope_scaling=None,
        rope_theta=1e7,
        **dict.fromkeys(NGRAM, DROP),
    )
    assert config["ngram"] is None and config["yarn"] is None and config["num_layers"] == 28


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checkpoints_of_the_tests(variant):
    options = VARIANTS[variant]
    config = make_config(options.get("config_overrides"), options.get("ngram", True))
    assert read(config)["num_layers"] == config["num_layers"]


def test_architecture_stands_for_model_type_and_the_reverse():
    names = {
        "longcat_flash_ngram": "LongcatFlashNgramForCausalLM",
        "longcat_flash": "LongcatFlashForCausalLM",
    }
    for model_type, architecture in names.items():
        assert read(architectures=DROP, model_type=model_type)["architecture"] == architecture
        assert read(architectures=[architecture], model_type=DROP)["architecture"] == architecture


def test_aliases():
    plain = read()
    assert read(intermediate_size=64, ffn_hidden_size=DROP) == plain
    assert read(moe_intermediate_size=32, expert_ffn_hidden_size=DROP) == plain
    oe = dict(oe_vocab_size_ratio=3, oe_neighbor_num=4, oe_split_num=4)
    assert read(**dict.fromkeys(NGRAM, DROP), **oe) == plain
    assert read(dtype="bfloat16", torch_dtype=DROP) == plain
    assert read(num_layers=DROP, num_hidden_layers=4) == plain
    assert read(num_hidden_layers=4) == read(num_hidden_layers=2) == plain
    assert read(eos_token_id=[2]) == plain


def test_defaults():
    optional = "rms_norm_eps bos_token_id eos_token_id zero_expert_num torch_dtype tie_word_embeddings"
    optional += " mla_scale_q_lora mla_scale_kv_lora"
    config = read(LITE, **dict.fromkeys(optional.split(), DROP))
    assert (config["rms_norm_eps"], config["bos_token_id"], config["eos_token_id"]) == (1e-5, 1, 2)
    assert config["zero_expert_num"] == 0 and config["torch_dtype"] == "BF16"
    assert config["mla_scale_q_lora"] and config["mla_scale_kv_lora"] and not config["tie_word_embeddings"]


def test_null_is_absent():
    assert read(rope_scaling=None, quantization_config=None, norm_topk_prob=None, hidden_act=None)["yarn"] is None


@pytest.mark.parametrize("name, dtype", [("bfloat16", "BF16"), ("float16", "F16"), ("torch.float32", "F32")])
def test_dtype(name, dtype):
    assert read(torch_dtype=name)["torch_dtype"] == dtype


def test_table_rows_are_truncated_as_python_does():
    for ratio, vocab_size in [(100.567, 163840), (0.5, 131), (78, 131072), (3.999, 101)]:
        rows = read(ngram_vocab_size_ratio=ratio, vocab_size=vocab_size)["ngram"]["table_rows"]
        assert rows == int(ratio * vocab_size)


def test_rope_spellings():
    yarn = dict(TINY_CONFIG["rope_scaling"])
    expected = read()
    del yarn["rope_type"]
    assert read(rope_scaling={"type": "yarn", **yarn}) == expected
    assert read(rope_scaling={"rope_type": "deepseek_yarn", "type": "yarn", **yarn}) == expected
    parameters = {"rope_type": "yarn", "rope_theta": 10000.0, **yarn}  # as transformers 5 writes it
    assert read(rope_scaling=DROP, rope_theta=DROP, rope_parameters=parameters) == expected
    assert read(rope_parameters=parameters) == expected
    plain = read(rope_scaling=None)
    assert read(rope_scaling={"type": "default"}) == plain
    assert read(rope_scaling=DROP, rope_theta=DROP, rope_parameters={"rope_theta": 10000}) == plain
    assert read(rope_scaling={"type": "yarn", "factor": 2})["yarn"] == {
        "factor": 2, "original_max_position_embeddings": 512, "beta_fast": 32, "beta_slow": 1,
        "mscale": None, "mscale_all_dim": None, "attention_factor": None, "truncate": True,
    }  # fmt: skip


def test_fp8_blocks():
    assert read(quantization_config=FP8)["fp8_blocks"]
    assert read(quantization_config={**FP8, "fmt": None, "ignored_layers": ["lm_head"] * 9999})["fp8_blocks"]


def test_oddities_are_warned_of():
    assert "norm_topk_prob" in read(norm_topk_prob=True)["warnings"][0]
    config = read(architectures=["LongcatFlashForCausalLM"], eos_token_id=[5, 2], **dict.fromkeys(NGRAM, DROP))
    assert config["eos_token_id"] == 5 and "eos_token_id" in config["warnings"][0]


RELATIVES = {
    "Sparse by name only": (dict(architectures=["LongcatCausalLM"]), 'attention_method "MLA", expected'),
    "LSA without index_topk": (dict(attention_method="LSA"), 'attention_method "LSA" but no index_topk'),
    "index_topk without LSA": (dict(index_topk=2048), 'index_topk but attention_method "MLA"'),
    "index heads without LSA": (dict(index_n_heads=16, attention_method=DROP), "attention_method absent"),
    "Next": (dict(architectures=["LongcatNextForCausalLM"]), "LongCat-Next"),
    "Next by model_type": (dict(architectures=DROP, model_type="longcat_next"), "LongCat-Next"),
    "2.0": (dict(architectures=["LongcatFlashProForCausalLM"], index_topk=2048), "LongCat-2.0"),
    "2.0 MTP": (dict(mtp_replicate_modules=True), "LongCat-2.0"),
    "2.0 tokenizer": (dict(mtp_disable_over_tokenizer=True), "LongCat-2.0"),
    "another model": (dict(architectures=["DeepseekV3ForCausalLM"]), "DeepseekV3ForCausalLM"),
    "another model_type": (dict(architectures=DROP, model_type="llama"), "llama"),
    "none": (dict(architectures=DROP), "architectures"),
    "two": (dict(architectures=["LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM"]), "architectures"),
    "no list": (dict(architectures="LongcatFlashForCausalLM"), "architectures"),
}


@pytest.mark.parametrize("case", RELATIVES)
def test_relatives_are_refused_by_name(case, refused):
    fields, tells = RELATIVES[case]
    message = refused(testing.parse_model_config, changed(**fields))
    assert tells in message and "LongCat-Flash-Lite, LongCat-Flash-Lite-Sparse and LongCat-Flash-Chat only" in message


# --- LongCat-Flash-Lite-Sparse ---------------------------------------------------------------------

TINY_SPARSE = PRESETS["tiny-sparse"]


def test_sparse():
    config = read(LITE_SPARSE)
    assert config["architecture"] == "LongcatCausalLM" and config["torch_dtype"] == "BF16"
    assert config["sparse"] == {
        "index_n_heads": 16, "index_head_dim": 128, "index_topk": 2048, "index_init_tokens": 16,
        "index_local_tokens": 1024, "is_owner": 14 * [True, False],
    }  # fmt: skip
    assert config["ngram"] == {"table_rows": 10223616, "emb_neighbor_num": 4, "emb_split_num": 4}
    assert config["yarn"]["factor"] == 120 and config["yarn"]["original_max_position_embeddings"] == 8192
    assert not config["tie_word_embeddings"] and config["warnings"] == [] and read()["sparse"] is None


def test_sparse_has_the_published_number_of_parameters():
    """69.1 billion, of which the 15 indexers have 53.8 million."""
    tensors = [*_core.expected_tensors(json.dumps(LITE_SPARSE)), *_core.expected_mtp_tensors(json.dumps(LITE_SPARSE))]
    sizes = {name: math.prod(shape) for name, shape, _ in tensors}
    assert (len(sizes), sum(sizes.values())) == (11_220, 69_127_158_912)
    indexers = {name: size for name, size in sizes.items() if ".indexer." in name}
    assert (len(indexers), sum(indexers.values())) == (60, 53_823_360)
    f32 = [name for name in sizes if re.search(r"\.router\.|weights_proj", name)]
    assert 2 * sum(sizes.values()) + 2 * sum(sizes[name] for name in f32) == 138_288_833_280  # bytes as published
    shapes = {name: shape for name, shape, _ in tensors}
    assert shapes["model.oe_embed_tokens11.weight"] == (10223639, 256)
    assert shapes["model.layers.13.self_attn.0.indexer.wq_b.weight"] == (2048, 1536)
    assert "model.layers.13.self_attn.1.indexer.wk.weight" not in shapes
    assert shapes["model.mtp.layers.0.self_attn.indexer.weights_proj.weight"] == (16, 3072)


def test_sparse_spellings():
    """The names of Lite's N-gram fields, fields of copies that were saved again, and other architecture names."""
    plain = read(TINY_SPARSE)
    lite = dict(ngram_vocab_size_ratio=3, emb_neighbor_num=4, emb_split_num=4)
    dropped = dict.fromkeys(("oe_vocab_size_ratio", "oe_neighbor_num", "oe_split_num"), DROP)
    assert read(TINY_SPARSE, **lite) == read(TINY_SPARSE, **lite, **dropped) == plain
    again = dict(indexer_rope_interleave=True, mtp_replicate_modules=True, dsa_mtp_cli=True, mtp_num_layers=3,
                 mtp_disable_over_tokenizer=True)  # fmt: skip
    assert read(TINY_SPARSE, **again) == read(TINY_SPARSE, use_mla=DROP, mtp_num_layers=DROP) == plain
    for architectures in (DROP, ["LongcatFlashNgramForCausalLM"]):
        assert read(TINY_SPARSE, architectures=architectures) == plain


SPARSE_REFUSED = {
    "norm": (dict(index_k_norm_type="layer"), ['index_k_norm_type is "layer"', '"rms"']),
    "no norm": (dict(index_k_norm_type=DROP), ["missing index_k_norm_type"]),
    "cli_factor": (dict(cli_factor=3), ["cli_factor is 3", "1..2"]),
    "no cli_factor": (dict(cli_factor=DROP), ["missing cli_factor"]),
    "short pattern": (dict(index_topk_pattern="CS"), ['index_topk_pattern is "CS"', 'expected 4 letters "C" or "S"']),
    "no first owner": (dict(index_topk_pattern="SCSC"), ["index_topk_pattern", 'the first of them "C"']),
    "pattern disagrees": (dict(index_topk_pattern="CCCS"), ['"CCCS", which contradicts cli_factor']),
    "too many always": (
        dict(index_init_tokens=21),
        ["index_init_tokens + index_local_tokens is 33", "index_topk, 32"],
    ),
    "odd rope": (dict(qk_rope_head_dim=7), ["qk_rope_head_dim is 7", "even"]),
    "rope beyond the index head": (dict(index_head_dim=6), ["qk_rope_head_dim is 8", "index_head_dim, 6"]),
    "no heads": (dict(index_n_heads=DROP), ["missing index_n_heads"]),
    "half rope": (dict(indexer_rope_interleave=False), ["indexer_rope_interleave is false"]),
    "spellings disagree": (
        dict(emb_split_num=2),
        ["emb_split_num is 2 but its alias oe_split_num is 4"],
    ),
    "MTP layers": (dict(mtp_num_layers=2), ["mtp_num_layers is 2", "1 or 3"]),
}


@pytest.mark.parametrize("case", SPARSE_REFUSED)
def test_sparse_refused(case, refused):
    fields, tells = SPARSE_REFUSED[case]
    message = refused(testing.parse_model_config, changed(TINY_SPARSE, **fields))
    assert message.startswith("[config] config.json: ")
    for part in tells:
        assert part in message


REFUSED = {
    "vocab_size zero": (dict(vocab_size=0), ["vocab_size is 0", "1..16777216"]),
    "vocab_size negative": (dict(vocab_size=-1), ["vocab_size is -1"]),
    "vocab_size fraction": (dict(vocab_size=128.0), ["vocab_size is 128.0"]),
    "vocab_size beyond 64 bits": (dict(vocab_size=2**70), ["vocab_size"]),
    "vocab_size as string": (dict(vocab_size="128"), ['vocab_size is "128"']),
    "vocab_size true": (dict(vocab_size=True), ["vocab_size is true"]),
    "hidden_size huge": (dict(hidden_size=2**62), ["hidden_size"]),
    "layers huge": (dict(num_layers=1001), ["num_layers is 1001", "1..1000"]),
    "layers disagree": (dict(num_hidden_layers=5), ["num_hidden_layers is 5", "expected 4"]),
    "odd layers": (dict(num_layers=DROP, num_hidden_layers=5), ["num_hidden_layers is 5"]),
    "all huge together": (
        dict(hidden_size=12 << 16, n_routed_experts=65536, expert_ffn_hidden_size=2**20, num_layers=1000),
        ["parameters"],
    ),
    "tables huge": (dict(vocab_size=2**24, ngram_vocab_size_ratio=1000), ["N-gram tables"]),
    "tables empty": (dict(ngram_vocab_size_ratio=0.001), ["ngram_vocab_size_ratio"]),
    "tables negative": (dict(ngram_vocab_size_ratio=-3), ["ngram_vocab_size_ratio"]),
    "some N-gram fields": (dict(emb_split_num=DROP), ["missing emb_split_num"]),
    "no N-gram fields": (
        dict.fromkeys(NGRAM, DROP),
        ["missing ngram_vocab_size_ratio, emb_neighbor_num, emb_split_num"],
    ),
    "N = 1": (dict(emb_neighbor_num=1), ["emb_neighbor_num is 1", "2..16"]),
    "N = 17": (dict(emb_neighbor_num=17), ["emb_neighbor_num is 17"]),
    "hidden_size not divisible": (dict(hidden_size=97), ["hidden_size is 97", "multiple", "12"]),
    "topk too large": (dict(moe_topk=10), ["moe_topk is 10", "9"]),
    "odd rope dim": (dict(qk_rope_head_dim=7), ["qk_rope_head_dim is 7", "even"]),
    "zero experts that drop": (dict(zero_expert_type="drop"), ['"drop"', '"identity"']),
    "activation": (dict(hidden_act="gelu"), ['"gelu"', '"silu"']),
    "attention": (dict(attention_method="MHA"), ['"MHA"', '"MLA"']),
    "attention bias": (dict(attention_bias=True), ["attention_bias is true"]),
    "router bias": (dict(router_bias=True), ["router_bias is true"]),
    "partial rotary": (dict(partial_rotary_factor=0.5), ["partial_rotary_factor is 0.5"]),
    "flag as number": (dict(mla_scale_q_lora=1), ["mla_scale_q_lora is 1", "true or false"]),
    "eps zero": (dict(rms_norm_eps=0), ["rms_norm_eps is 0"]),
    "eps negative": (dict(rms_norm_eps=-1e-5), ["rms_norm_eps"]),
    "eps zero as a float": (dict(rms_norm_eps=1e-50), ["rms_norm_eps is 1e-50"]),
    "scaling factor zero as a float": (dict(routed_scaling_factor=5e-324), ["routed_scaling_factor is 5e-324"]),
    "theta missing": (dict(rope_theta=DROP), ["missing rope_theta"]),
    "theta one": (dict(rope_theta=1), ["rope_theta is 1"]),
    "scaling factor missing": (dict(routed_scaling_factor=DROP), ["missing routed_scaling_factor"]),
    "rope type": (dict(rope_scaling={"type": "linear", "factor": 2}), ['"linear"', '"yarn"']),
    "rope type missing": (dict(rope_scaling={"factor": 2}), ["rope_scaling.rope_type"]),
    "rope types disagree": (
        dict(rope_scaling={"rope_type": "yarn", "type": "linear", "factor": 2}),
        ['"linear"'],
    ),
    "rope_scaling is a list": (dict(rope_scaling=[1]), ["rope_scaling is [1]"]),
    "yarn without factor": (dict(rope_scaling={"type": "yarn"}), ["missing rope_scaling.factor"]),
    "yarn factor below one": (
        dict(rope_scaling={"type": "yarn", "factor": 0.5}),
        ["rope_scaling.factor is 0.5"],
    ),
    "yarn ramp reversed": (dict(rope_scaling={"type": "yarn", "factor": 2, "beta_fast": 0.5}), ["beta_fast"]),
    "two ropes": (dict(rope_parameters={"rope_theta": 1e4, "rope_type": "default"}), ["contradict"]),
    "scaling without type": (
        dict(rope_scaling=DROP, rope_parameters={"rope_theta": 1e4, "factor": 2}),
        ["rope_parameters.rope_type"],
    ),
    "two thetas": (dict(rope_parameters={**TINY_CONFIG["rope_scaling"], "rope_theta": 5}), ["rope_theta"]),
    "two eos ids": (dict(eos_token_id=[2, 3]), ["eos_token_id is [2,3]", "one id"]),
    "no eos ids": (dict(eos_token_id=[]), ["eos_token_id"]),
    "eos outside": (dict(eos_token_id=128), ["eos_token_id is 128", "128"]),
    "bos negative": (dict(bos_token_id=-1), ["bos_token_id is -1"]),
    "alias disagrees": (dict(intermediate_size=65), ["ffn_hidden_size is 64", "intermediate_size is 65"]),
    "dtype": (dict(torch_dtype="float8_e4m3fn"), ['"float8_e4m3fn"', "bfloat16"]),
    "gptq": (dict(quantization_config={"quant_method": "gptq"}), ['"gptq"', "fp8"]),
    "awq": (dict(quantization_config={"quant_method": "awq"}), ['"awq"']),
    "compressed-tensors": (
        dict(quantization_config={"quant_method": "compressed-tensors"}),
        ['"compressed-tensors"'],
    ),
    "mlx": (dict(quantization={"bits": 4, "group_size": 64}), ["quantization is", "fp8"]),
    "fp8 per tensor": (dict(quantization_config={"quant_method": "fp8"}), ["weight_block_size"]),
    "fp8 other blocks": (dict(quantization_config={**FP8, "weight_block_size": [64, 64]}), ["[64,64]"]),
    "fp8 e5m2": (dict(quantization_config={**FP8, "fmt": "e5m2"}), ['"e5m2"']),
    "fp8 static": (dict(quantization_config={**FP8, "activation_scheme": "static"}), ['"static"']),
    "nan": (dict(rope_theta=float("nan")), ["not valid JSON"]),
    "infinity": (dict(routed_scaling_factor=float("inf")), ["not valid JSON"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, refused):
    fields, tells = REFUSED[case]
    message = refused(testing.parse_model_config, changed(**fields))
    assert message.startswith("[config] config.json: ")
    for part in tells:
        assert part in message


def test_all_problems_at_once(refused):
    message = refused(
        testing.parse_model_config, changed(vocab_size=DROP, moe_topk=DROP, hidden_act="gelu", q_lora_rank=0)
    )
    assert "missing vocab_size, moe_topk" in message and "q_lora_rank is 0" in message and "gelu" in message


def with_field(value: str) -> str:
    return changed()[:-1] + f', "auto_map": {value}}}'


TEXTS = {
    "empty": ("", "not valid JSON"),
    "a list": ("[]", "array, expected an object"),
    "a number": ("1", "expected an object"),
    "cut off": (changed()[:-1], "not valid JSON"),
    "two objects": (changed() * 2, "not valid JSON"),
    "NUL": (changed() + "\0", "NUL"),
    "comment": ("{} // really", "not valid JSON"),
    "number overflows": (changed().replace("10000.0", "1e999"), "not valid JSON"),
    "key twice": (changed()[:-1] + ', "vocab_size": 128}', 'duplicate key "vocab_size"'),
    "key twice, escaped": (changed()[:-1] + ', "vocab\\u005fsize": 128}', 'duplicate key "vocab_size"'),
    "key twice, inside": (with_field('{"a": [{"b": 1, "b": 2}]}'), 'duplicate key "b"'),
    "deep": ("[" * 500_000, "nested deeper"),
    "deep inside": (with_field('{"a": ' * 17 + "1" + "}" * 17), "nested deeper"),
    "large": (changed(x="a" * 2**20), "at most 1048576"),
    "many small values": ("[" + "{}," * 300_000 + "0]", "more than 100000 values"),
    "hostile key": ("{" + ('"\\n\\u2028' + "k" * 100_000 + '": 1,') * 2 + "}", "duplicate"),
    "hostile value": (changed(hidden_act="\n\x1b\u202e" + "x" * 100_000), "hidden_act"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_refused_texts(case, refused):
    text, tells = TEXTS[case]
    message = refused(testing.parse_model_config, text)
    assert message.startswith("[config] config.json: ") and tells in message
