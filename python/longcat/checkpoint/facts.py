"""Facts on which descriptions of LongCat-Flash-Lite are silent or disagree, read from a checkpoint's own files.

The sources are config.json, the safetensors headers and the tokenizer files. No tensor data is read, and nothing is
executed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longcat._core as _core
from longcat._core import Error
from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text, count, printable, some_of

_ROLE_TAGS = ("<longcat_system>", "<longcat_user>", "<longcat_assistant>")
# A parser looks for these tags in the decoded completion. As special tokens they would be dropped before it sees them.
_PARSED_TAGS = tuple(
    f"<{slash}longcat_{name}>" for name in ("think", "tool_call", "arg_key", "arg_value") for slash in ("", "/")
)
_OTHER_TAGS = (
    *(f"<{slash}longcat_{name}>" for name in ("tool_declare", "tool_response", "files") for slash in ("", "/")),
    "<longcat_observation>",
)
_MTP_PREFIX = "model.mtp."
# Fields of config.json that this runtime reads, or that do not affect its results.
_KNOWN_FIELDS = frozenset(
    """
    architectures model_type auto_map torch_dtype dtype transformers_version use_cache initializer_range
    vocab_size hidden_size num_layers num_hidden_layers num_attention_heads num_key_value_heads head_dim qk_head_dim
    q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim mla_scale_q_lora mla_scale_kv_lora
    attention_method attention_bias attention_dropout hidden_act rms_norm_eps tie_word_embeddings
    ffn_hidden_size intermediate_size expert_ffn_hidden_size moe_intermediate_size n_routed_experts zero_expert_num
    zero_expert_type moe_topk routed_scaling_factor norm_topk_prob router_bias
    rope_theta rope_scaling rope_parameters partial_rotary_factor max_position_embeddings
    bos_token_id eos_token_id pad_token_id quantization_config
    ngram_vocab_size_ratio emb_neighbor_num emb_split_num oe_vocab_size_ratio oe_neighbor_num oe_split_num
    mtp_num_layers num_nextn_predict_layers router_dtype
    use_mla index_n_heads index_head_dim index_topk index_k_norm_type index_init_tokens index_local_tokens cli_factor
    indexer_rope_interleave mtp_replicate_modules dsa_mtp_cli mtp_disable_over_tokenizer
    index_topk_pattern oe_divides_word mtp_shares_embed_tokens mla_norm_eps
    """.split()
)


@dataclass(frozen=True)
class Fact:
    """One fact on which descriptions of the model are silent or disagree.

    `as_assumed` is False where the folder differs from the descriptions or from this runtime's defaults.
    """

    topic: str
    found: str
    note: str = ""
    as_assumed: bool = True


def collect_facts(folder: Path, checkpoint: _core.Checkpoint | None) -> list[Fact]:
    """Collects the facts of a checkpoint folder.

    Args:
        folder: of the checkpoint.
        checkpoint: its tensors, or None when files are damaged; then only config and tokenizer are reported.
    Returns:
        One Fact per topic. Files that cannot be read are left out, because the checks have reported them.
    """
    tensors = (
        {name: (dtype, shape, begin, end) for name, dtype, shape, _, begin, end in checkpoint.tensors()}
        if checkpoint
        else {}
    )
    config, generation, tokenizer, tokenizer_config = (
        _object_or_nothing(folder / name)
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    )
    try:
        _core.config_warnings(str(folder))
    except Error:
        config = {}
    facts: list[Fact] = []
    if config:
        facts += _config_facts(config)
    if tensors:
        facts += _tensor_facts(config, tensors)
    if tokenizer:
        facts += _token_facts(config, tokenizer, tokenizer_config)
    facts += _generation_facts(config, generation)
    facts.append(_parser_fact(folder))
    return [Fact(fact.topic, printable(fact.found), printable(fact.note), fact.as_assumed) for fact in facts]


# --- config.json -----------------------------------------------------------------------------------------------


def _config_facts(config: Mapping[str, Any]) -> Iterator[Fact]:
    names = config.get("architectures")
    model_type = config.get("model_type")
    code = "; its auto_map names Python files, which are never run" if "auto_map" in config else ""
    yield Fact(
        "architecture",
        f"{', '.join(names or ['none'])}, model_type {model_type or 'absent'}",
        f"either is accepted{code}",
    )
    yield _rope_fact(config)
    is_sparse = config.get("attention_method") == "LSA"
    inner = "rms_norm_eps, as the published engine does" if is_sparse else "1e-6, as transformers does"
    if config.get("mla_norm_eps") is not None:
        inner = f"mla_norm_eps {config['mla_norm_eps']}"
    yield Fact(
        "norms",
        f"rms_norm_eps {config.get('rms_norm_eps', 'absent')}",
        f"the two norms inside attention use {inner}; which one training used no file tells",
    )
    if is_sparse:
        if (pattern := config.get("index_topk_pattern")) is not None:
            sharing = f"own selections (C) and shared ones (S): {''.join(pattern)} (index_topk_pattern)"
        else:
            sharing = f"{config['cli_factor']} attentions share a selection (cli_factor)"
        yield Fact(
            "sparse attention",
            f"index_topk {config['index_topk']}, of these the first {config['index_init_tokens']} and the last "
            f"{config['index_local_tokens']}; {config['index_n_heads']} index heads of {config['index_head_dim']}; "
            + sharing,
            "equal scores: the lower position is selected; other engines leave that open",
        )
    scale, zero = config.get("routed_scaling_factor"), config.get("zero_expert_num", 0)
    if zero:
        yield Fact(
            "identity experts",
            f"{zero} of type {config.get('zero_expert_type', 'identity')}, routed_scaling_factor {scale}",
            "the factor applies to them too, as in transformers; some engines leave it out",
        )
    unknown = sorted(config.keys() - _KNOWN_FIELDS)
    yield Fact(
        "other config fields",
        ", ".join(f"{name} = {json.dumps(config[name])}" for name in unknown) or "none",
        "not read: look whether one of them changes the model" if unknown else "every field is known",
        not unknown,
    )


def _rope_fact(config: Mapping[str, object]) -> Fact:
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    scaling = scaling if isinstance(scaling, dict) else {}
    positions = config.get("max_position_embeddings")
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind in (None, "default"):
        return Fact(
            "rope scaling",
            f"none; {positions} positions",
            "plain RoPE is used; LongCat-Flash-Lite is described with YaRN x10 of 32768 positions",
            False,
        )
    original, factor = scaling.get("original_max_position_embeddings", positions), scaling.get("factor")
    found = (
        f"{kind} x{factor} of {original} positions, mscale {scaling.get('mscale')} / {scaling.get('mscale_all_dim')}"
    )
    fits = original is not None and factor is not None and original * factor == positions
    return Fact(
        "rope scaling",
        f"{found}; {positions} positions",
        "used at every length" if fits else "max_position_embeddings is not the product of the two",
        fits,
    )


# --- headers ---------------------------------------------------------------------------------------------------


def _tensor_facts(
    config: Mapping[str, object], tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]]
) -> Iterator[Fact]:
    def of(pattern: str) -> list[str]:
        return [name for name in tensors if re.search(pattern, name)]

    def dtypes(names: Iterable[str]) -> str:
        tally = Counter(tensors[name][0] for name in names)
        return (
            " and ".join(f"{dtype} ({n})" if len(tally) > 1 else dtype for dtype, n in sorted(tally.items()))
            or "absent"
        )

    classifier = dtypes(of(r"mlp\.router\.classifier\.weight$"))
    bias = dtypes(of(r"e_score_correction_bias$"))
    yield Fact(
        "router",
        f"classifier {classifier}, correction bias {bias}",
        "computed in F32 from what is stored"
        + ("" if classifier == "F32" else "; F32 is what the model is described with"),
        classifier == "F32",
    )
    tables = of(r"ngram_embeddings\.embedders\.|oe_embed_tokens\d")
    size = sum(tensors[name][3] - tensors[name][2] for name in tables)
    word = f"word embedding {dtypes(of(r'^model.embed_tokens.weight$'))}, head {dtypes(of(r'^lm_head.weight$'))}"
    if tables:
        rows = sum(tensors[name][1][0] for name in tables)
        yield Fact(
            "N-gram tables",
            f"{count(len(tables), 'table')}, {rows:,} rows, {dtypes(tables)}, {bytes_text(size)}; {word}",
        )
    else:
        yield Fact("N-gram tables", f"none; {word}", "the shape of LongCat-Flash-Chat")
    yield _quantisation_fact(config, tensors)
    yield _mtp_fact(config, tensors)


def _quantisation_fact(
    config: Mapping[str, object], tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]]
) -> Fact:
    quantisation = config.get("quantization_config")
    kinds: dict[str, Counter[str]] = {}
    for name, (dtype, shape, *_) in tensors.items():
        if len(shape) == 2 and name.endswith(".weight"):
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", "", name.removesuffix(".weight")), Counter())[dtype] += 1
    fp8 = {kind.removeprefix("model."): tally for kind, tally in kinds.items() if "F8_E4M3" in tally}
    if not fp8:
        note = "" if not quantisation else "quantization_config is there, but no tensor is F8_E4M3"
        return Fact("quantisation", "none", note, not quantisation)
    partly = [kind for kind, tally in fp8.items() if len(tally) > 1]
    kept = [kind.removeprefix("model.") for kind, tally in kinds.items() if "F8_E4M3" not in tally]
    ignored = quantisation.get("ignored_layers") if isinstance(quantisation, dict) else None
    found = (
        f"F8_E4M3 in {', '.join(sorted(fp8))}{f' (some only: {some_of(partly)})' if partly else ''}; "
        f"kept: {', '.join(sorted(kept))}"
    )
    listed = (
        f"ignored_layers lists {count(len(ignored), 'module')}" if isinstance(ignored, list) else "no ignored_layers"
    )
    return Fact("quantisation", found, f"{listed}; what counts here is each tensor's own dtype")


def _mtp_fact(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> Fact:
    found: JsonObject = {}  # shapes by name; None for packed tensors
    for name, (_, shape, *_) in tensors.items():
        base, _, suffix = name.rpartition(".")
        if name.startswith(_MTP_PREFIX) and not name.endswith("_scale_inv"):
            found |= {base: None} if suffix in _core.PACKED_FORMATS else {name: shape}
    if not found:
        return Fact("MTP layer", "absent", "needed for speculative decoding only")
    try:
        shapes = {name: shape for name, shape, _ in _core.expected_mtp_tensors(json.dumps(config))}
    except Error:
        return Fact("MTP layer", f"{count(len(found), 'tensor')}", "needed for speculative decoding only")
    both = found.keys() & shapes.keys()
    odd = sorted(found.keys() ^ shapes.keys()) + sorted(n for n in both if found[n] not in (None, shapes[n]))
    return Fact(
        "MTP layer",
        f"{count(len(found), 'tensor')}",
        f"not as described: {some_of(odd)}" if odd else "names and shapes as described; for speculative decoding only",
        not odd,
    )


# --- tokenizer -------------------------------------------------------------------------------------------------


def _token_facts(
    config: Mapping[str, object], tokenizer: Mapping[str, object], tokenizer_config: Mapping[str, object]
) -> Iterator[Fact]:
    added = _added_tokens(tokenizer.get("added_tokens"))
    text_of = {id: text for text, (id, _) in added.items()}
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        text_of = {id: text for text, id in vocab.items() if isinstance(id, int) and id < 4} | text_of

    def show(tags: Iterable[str]) -> str:
        return ", ".join(
            f"{tag} {added[tag][0]}{' special' if added[tag][1] else ''}" if tag in added else f"{tag} absent"
            for tag in tags
        )

    ends = {name: config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    yield Fact(
        "ids 0 to 3",
        ", ".join(f"{id} {text_of.get(id, 'absent')}" for id in range(4)),
        "config.json: " + ", ".join(f"{name} {id}" for name, id in ends.items()),
    )
    yield Fact("role tags", show(_ROLE_TAGS), as_assumed=all(tag in added for tag in _ROLE_TAGS))
    special = [tag for tag in _PARSED_TAGS if added.get(tag, (0, False))[1]]
    absent = [tag for tag in _PARSED_TAGS if tag not in added]
    note = "not special, so they stay in the text for the tool parser"
    if special:
        note = f"skip_special_tokens drops {some_of(special)} before the tool parser sees them"
    elif absent:
        note = "an absent tag is encoded as ordinary text"
    yield Fact("think and tool tags", show(_PARSED_TAGS), note, not special and not absent)
    yield Fact("other tags", show(_OTHER_TAGS))
    decoder = tokenizer_config.get("added_tokens_decoder")
    other = _added_tokens(list(decoder.values()) if isinstance(decoder, dict) else None)
    differ = [tag for tag in added if tag in other and added[tag][1] != other[tag][1]]
    flags = {name: tokenizer_config.get(name) for name in ("add_bos_token", "add_eos_token")}
    yield Fact(
        "tokenizer_config.json",
        ", ".join(f"{name} {json.dumps(value)}" for name, value in flags.items()),
        "nothing is added around a prompt whatever they say: the chat template writes every tag"
        if not differ
        else f"its special flags differ from tokenizer.json for {some_of(differ)}; tokenizer.json counts",
        not differ,
    )


def _added_tokens(entries: object) -> dict[str, tuple[int, bool]]:
    """text -> (id, is it special) for a list of added tokens; malformed entries are skipped."""
    return {
        entry["content"]: (entry["id"] if isinstance(entry.get("id"), int) else -1, entry.get("special") is True)
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }


# --- other files -----------------------------------------------------------------------------------------------


def _generation_facts(config: Mapping[str, object], generation: Mapping[str, object]) -> Iterator[Fact]:
    names = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "eos_token_id", "pad_token_id")
    found = ", ".join(f"{name} {json.dumps(generation[name])}" for name in names if name in generation)
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    extra = isinstance(eos, list) and len(eos) > 1
    note = "these are the defaults of generate"
    if not generation:
        note = "LongCat-Flash-Lite's card recommends repetition_penalty 1.06, temperature 0.7, top_p 0.95, top_k 4"
    elif extra:
        note = f"any of the ids {eos} ends an answer; the N-gram hash breaks at {config.get('eos_token_id')} only"
    yield Fact("sampling defaults", found or "none", note, bool(generation))


def _parser_fact(folder: Path) -> Fact:
    path = folder / "parse_model_response.py"
    if not path.is_file():
        return Fact("parse_model_response.py", "absent", "longcat.parse_model_response does its work")
    return Fact(
        "parse_model_response.py",
        f"{path.stat().st_size} bytes",
        "never run; longcat.parse_model_response does its work",
    )


# --- reading --------------------------------------------------------------------------------------


def _object_or_nothing(path: Path) -> JsonObject:
    try:
        return read_json_object(path, "[verify]")
    except Error:
        return {}
