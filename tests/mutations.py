"""Breaks the model on purpose, one way at a time, and shows that a test notices.

Each mutation edits one file of a copy of the tree, compiles it, and runs the tests that should catch it. `make test`
leaves this out, as a mutation takes about half a minute: .venv/bin/python tests/mutations.py [name ...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGITS = "tests/model/test_logits.py::test_logits_equal_transformers"
TILES = "tests/ops/test_tiles.py::test_tiles_give_the_bits_of_the_reference"
SPARSE_PARTS = "tests/model/test_sparse.py::test_all_parts_equal_the_reference"

# name -> (file, what is there, what replaces it, tests that must fail)
MUTATIONS = {
    "zero the N-gram tables": (
        "cpp/cpu/ngram_embed.cpp",
        "cpu::read_row(out, weight, row);",
        "std::fill_n(out, weight.in_features, 0.0f);",
        [LOGITS, "tests/model/test_logits.py::test_greedy_continuations_equal_the_reference"],
    ),
    "drop routed_scaling_factor on identity experts": (
        "cpp/cpu/moe.cpp",
        "identity += weight;",
        "identity += scores[picks[j]];",
        [LOGITS, "tests/ops/test_ops.py::test_moe"],
    ),
    "ignore EOS in the N-gram window": (
        "cpp/cpu/ngram_embed.cpp",
        "open = id != ngram.eos_token_id;",
        "",
        [LOGITS, "tests/model/test_ngram.py::test_worked_example"],
    ),
    "add the shortcut early": (
        "cpp/model/model.cpp",
        "  ffn(w.ffn[0], a_.moe_in);\n",
        "  ffn(w.ffn[0], a_.moe_in);\n  ops_.add(a_.x, a_.moe_out);\n"
        "  ops_.add_scaled_rows(a_.x, a_.moe_in, a_.routing.identity_weight);\n"
        "  ops_.add_scaled_rows(a_.moe_out, a_.moe_out, a_.routing.identity_weight);\n",
        [LOGITS],
    ),
    "use rms_norm_eps in the inner norms": (
        "cpp/model/model.cpp",
        "constexpr double kInnerNormEps = 1e-6;",
        "constexpr double kInnerNormEps = 1e-5;",
        [LOGITS],
    ),
    "weigh by the corrected scores": (
        "cpp/cpu/moe.cpp",
        "const float weight = scores[picks[j]] * scaling_factor;",
        "const float weight = (scores[picks[j]] + bias.data<float>()[picks[j]]) * scaling_factor;",
        [LOGITS, "tests/ops/test_ops.py::test_correction_bias_selects_but_does_not_weigh"],
    ),
    "read no expert ahead": (
        "cpp/model/model.cpp",
        "ops_.read_experts_ahead(a_.routing, w.moe.experts());",
        "",
        ["tests/model/test_experts_on_disk.py::test_only_picked_experts_are_read"],
    ),
    "read the neighbours of experts": (
        "cpp/model/model.cpp",
        "if (weight.placement == Placement::disk) expect_random_reads(weight.data, weight.num_bytes());",
        "",
        ["tests/model/test_experts_on_disk.py::test_only_picked_experts_are_read"],
    ),
    "drop YaRN's softmax factor": (
        "cpp/model/rope_scaling.cpp",
        "rope.softmax_factor = mscale * mscale;",
        "rope.softmax_factor = 1;",
        [LOGITS, "tests/model/test_rope_scaling.py::test_longcat_flash_lite"],
    ),
    "attend to one piece of the history only": (
        "cpp/cpu/attention/attention.cpp",
        "float max = cpu::kNothing, sum = 0;",
        "pieces = pieces.first(1);\n  float max = cpu::kNothing, sum = 0;",
        ["tests/ops/test_ops.py::test_mla_decode_attends_to_what_is_stored"],
    ),
    "count one local position too few": (
        "cpp/model/model.cpp",
        "{c.index_topk, c.index_init_tokens, c.index_local_tokens}",
        "{c.index_topk, c.index_init_tokens, c.index_local_tokens - 1}",
        [SPARSE_PARTS],
    ),
    "select the first positions of the chunk": (
        "cpp/cpu/attention/selection.cpp",
        "for (int64_t j = 0; j < rule.init_tokens; ++j) out[j] = static_cast<int32_t>(j);",
        "for (int64_t j = 0; j < rule.init_tokens; ++j)\n"
        "      out[j] = static_cast<int32_t>(positions[batch.query_starts.data<int32_t>()[sequences[row]]] + j);",
        ["tests/model/test_sparse.py::test_chunks_and_batches_have_the_same_bits"],
    ),
    "select the fixed positions beside index_topk": (
        "cpp/model/model.cpp",
        "{c.index_topk, c.index_init_tokens, c.index_local_tokens}",
        "{c.index_topk + c.index_init_tokens + c.index_local_tokens, c.index_init_tokens, c.index_local_tokens}",
        [SPARSE_PARTS],
    ),
    "share one selection among all layers": (
        "cpp/model/model.cpp",
        "  if (!may_select(batch)) return;\n  if (!selection_rows_",
        "  if (!may_select(batch) || &w != &*weights_.layers[0].attention[0].indexer) return;\n  if (!selection_rows_",
        [SPARSE_PARTS],
    ),
    "rotate the index keys before their norm": (
        "cpp/cpu/attention/selection.cpp",
        "    cpu::norm_row(row, row, norm_weight.data<float>(), k.size(1), eps);\n"
        "    cpu::rotate_pairs(row, cos.row<float>(t), sin.row<float>(t), 2 * cos.size(1));\n",
        "    cpu::rotate_pairs(row, cos.row<float>(t), sin.row<float>(t), 2 * cos.size(1));\n"
        "    cpu::norm_row(row, row, norm_weight.data<float>(), k.size(1), eps);\n",
        [SPARSE_PARTS],
    ),
    "leave the scales of the queries out of the scores of int8 keys": (
        "cpp/cpu/attention/index_scores.cpp",
        "        weights_[static_cast<size_t>(h)] *= query_scale;\n",
        "        static_cast<void>(query_scale);\n",
        ["tests/ops/test_selection.py::test_scores_of_int8_keys"],
    ),
    "let an attention without an indexer select by its number": (
        "cpp/model/model.cpp",
        "cache.index_keys(config_.sparse->owners_before(sub_layer))",
        "cache.index_keys(sub_layer / 2)",
        ["tests/model/test_sparse.py::test_the_pattern_of_selections"],
    ),
    "divide the word's vector always": (
        "cpp/model/model.cpp",
        "if (!config_.oe_divides_word) {",
        "if (false) {",
        ["tests/model/test_sparse.py::test_a_switch_of_config_json"],
    ),
    "store no index keys while nothing is selected": (
        "cpp/model/model.cpp",
        "  ops_.linear(a_.index_k, a_.h, w.k_proj);\n",
        "  if (!may_select(batch)) return;\n  ops_.linear(a_.index_k, a_.h, w.k_proj);\n",
        ["tests/model/test_sparse.py::test_index_keys_are_stored_before_anything_is_selected"],
    ),
    "let the whole batch select": (
        "cpp/cpu/attention/attention.cpp",
        "const bool selects = !selected.empty() && visible > selected.size(1);",
        "const bool selects = !selected.empty();",
        ["tests/model/test_sparse.py::test_generated_tokens_equal_prompt_tokens"],
    ),
    "verify draft tokens by one selection": (
        "cpp/cpu/attention/attention.cpp",
        "selects ? selected.row<int32_t>(last) : nullptr",
        "selects ? selected.row<int32_t>(num_rows - 1) : nullptr",
        ["tests/model/test_sparse.py::test_each_draft_token_selects_for_itself"],
    ),
    "let draft tokens not see each other": (
        "cpp/cpu/attention/selection.cpp",
        "to[last] = positions.data<int32_t>()[i];",
        "to[last] = to[0];",
        ["tests/model/test_sparse.py::test_drafts_equal_the_reference"],
    ),
    "swap what the MTP layer reads": (
        "cpp/model/weights.cpp",
        "builder.core(eh_proj, all_rows, {0, c.hidden_size})",
        "builder.core(eh_proj, all_rows, {c.hidden_size, 2 * c.hidden_size})",
        ["tests/model/test_mtp.py::test_logits_equal_the_reference"],
    ),
    "go on from a rejected draft token": (
        "cpp/engine/drafter.cpp",
        "static_cast<int32_t>(row) - 1 - static_cast<int32_t>(chunk.num_draft_tokens)",
        "static_cast<int32_t>(row) - 1",
        ["tests/engine/test_mtp.py::test_draft_tokens_are_those_of_the_layer"],
    ),
    "read a draft token one slot too far": (
        "cpp/cpu/drafts.cpp",
        "goes_on ? static_cast<int32_t>(position) - 1 : 0;",
        "goes_on ? static_cast<int32_t>(position) : 0;",
        ["tests/engine/test_mtp.py::test_draft_tokens_are_those_of_the_layer"],
    ),
    "draft with other random numbers than the draws": (
        "cpp/engine/drafter.cpp",
        "draw.sequence = static_cast<int32_t>(i);",
        "draw.sequence = static_cast<int32_t>(i);\n        draw.seed += 1;",
        ["tests/engine/test_mtp.py::test_fewer_steps"],
    ),
    "let the device accept one draft token too many": (
        "cuda/kernels/drafts.cu",
        "num_accepted_drafts(plan, token_ids, sampled_ids), row",
        "plan.num_verified, row",
        [
            "tests/ops/test_drafts.py::test_rows_follow_the_rules",
            "tests/engine/test_device_engine.py::test_accepted_draft_tokens_change_no_completion",
        ],
    ),
    "draw a draft token like the one before it": (
        "cuda/kernels/drafts.cu",
        "++drafts.choice[i];",
        "",
        ["tests/ops/test_drafts.py::test_rows_follow_the_rules"],
    ),
    "leave a row that ends in its sequence's block": (
        "cuda/kernels/drafts.cu",
        "drafts.num_wanted[i] = table[0] = 0;",
        "drafts.num_wanted[i] = 0;",
        ["tests/ops/test_drafts.py::test_rows_follow_the_rules"],
    ),
    "let draft tokens leave their block": (
        "cpp/ops/drafts.h",
        "return has_draft_slot(position) ? kBlockSize - 1 - position % kBlockSize : 1;",
        "return kBlockSize - position % kBlockSize;",
        [
            "tests/ops/test_drafts.py::test_rows_follow_the_rules",
            "tests/engine/test_mtp.py::test_draft_tokens_are_those_of_the_layer",
        ],
    ),
    "accept rejected draft tokens": (
        "cpp/engine/step_results.cpp",
        "return std::equal(drafts, drafts + draw.num_drafts, drawn);",
        "return drafts != drawn;",
        ["tests/engine/test_mtp.py::test_completions_are_the_same"],
    ),
    "leave out a row's last column in tiles": (
        "cpp/cpu/gemm/tile_products.h",
        "from + r * operand.stride, static_cast<size_t>(row_bytes)",
        "from + r * operand.stride, static_cast<size_t>(row_bytes / 4 * 4)",
        [TILES],
    ),
    "leave out a group's last pair of columns in tiles": (
        "cpp/cpu/gemm/tile_products.h",
        "r < rows; ++r)\n      std::memcpy(tail.bytes",
        "r + 1 < rows; ++r)\n      std::memcpy(tail.bytes",
        [TILES],
    ),
    "swap the pairs of inputs in tiles": (
        "cpp/cpu/gemm/tile_products.h",
        "      transpose(lanes);\n",
        "      transpose(lanes);\n      for (Lanes& pair : lanes) pair = pair << 16 | pair >> 16;\n",
        [TILES],
    ),
    "keep tiles configured": (
        "cpp/cpu/gemm/tile_products.h",
        "    Tiles::release();\n  }\n\n  static void groups",
        "  }\n\n  static void groups",
        [TILES],
    ),
    "exchange the factors of a tile's product": (
        "cpp/cpu/simd/tiles.h",
        '"tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"',
        '"tdpbf16ps %%tmm%c1, %%tmm%c2, %%tmm%c0"',
        [TILES],
    ),
    "take the weights of AVX-VNNI for signed ones": (
        "cpp/cpu/simd/avx_vnni.h",
        "static_cast<char>(0x80)",
        "static_cast<char>(0)",
        ["tests/ops/test_instruction_sets.py::test_kernels_give_the_same_bits"],
    ),
    "use tiles that the system does not save": (
        "cpp/cpu/simd/isa.cpp",
        "kTiles = 0x60000",
        "kTiles = 0x20000",
        ["tests/ops/test_tiles.py::test_sets_need_their_instructions_and_registers"],
    ),
}


def apply(tree: Path, file: str, before: str, after: str) -> None:
    """Replaces the one occurrence of `before`, however it is wrapped."""
    path = tree / file
    text = path.read_text()
    if text.count(before) != 1:
        raise SystemExit(f"{file}: expected one occurrence of {before!r}, found {text.count(before)}")
    path.write_text(text.replace(before, after))


def build(tree: Path) -> Path:
    """Compiles what has changed in the copy, and installs it into a folder of its own."""
    target = tree / "installed"
    shutil.rmtree(target, ignore_errors=True)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja of this environment
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    install += ["--target", str(target), str(tree), "-C", "cmake.define.LONGCAT_TESTING=ON"]
    subprocess.run(install, check=True, env={**os.environ, "PATH": programs})
    return target


def fails(tree: Path, target: Path, test: str) -> tuple[bool, str]:
    """Whether the test fails on the package in `target`, and pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    result = subprocess.run(command, cwd=tree, env={"PYTHONPATH": str(target)}, capture_output=True, text=True)
    return result.returncode == 1, result.stdout.strip().splitlines()[-1]


def main() -> int:
    names = sys.argv[1:] or list(MUTATIONS)
    if unknown := [name for name in names if name not in MUTATIONS]:
        raise SystemExit(f"found no mutation {unknown[0]!r}; expected some of:\n" + "\n".join(MUTATIONS))
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "longcat"
        ignored = shutil.ignore_patterns(".git", "build", "third_party", ".venv*", "*.so", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=ignored)
        whole = build(tree)
        for test in sorted({test for name in names for test in MUTATIONS[name][3]}):
            failed, line = fails(tree, whole, test)
            if failed:
                raise SystemExit(f"{test} fails without a mutation: {line}")
        for name in names:
            file, before, after, tests = MUTATIONS[name]
            text = (tree / file).read_text()
            apply(tree, file, before, after)
            target = build(tree)
            for test in tests:
                failed, line = fails(tree, target, test)
                print(f"{name}: {test}: {line}", flush=True)
                if not failed and name not in missed:
                    missed.append(name)
            (tree / file).write_text(text)
    print(f"{len(names) - len(missed)} of {len(names)} mutations caught" + (f"; missed: {missed}" if missed else ""))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
