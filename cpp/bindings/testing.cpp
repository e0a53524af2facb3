// What the tests need to see of the core and users do not: single ops, explicit batches, latents.

#include <algorithm>
#include <cstring>

#include "base/available_memory.h"
#include "bindings/bindings.h"
#include "bindings/sampling_case.h"
#include "cpu/attention/latents.h"
#include "cpu/sample.h"
#include "engine/batch_buffers.h"
#include "engine/engine.h"
#include "io/model_config.h"
#include "io/safetensors.h"
#include "model/rope_scaling.h"
#include "ops/backend.h"
#include "ops/philox.h"

namespace py = pybind11;

namespace longcat {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Tensor view(const py::array& array, DType dtype) {
  void* data = const_cast<void*>(array.data());
  switch (array.ndim()) {
    case 1:
      return Tensor(data, dtype, {array.shape(0)});
    case 2:
      return Tensor(data, dtype, {array.shape(0), array.shape(1)});
    case 3:
      return Tensor(data, dtype, {array.shape(0), array.shape(1), array.shape(2)});
    default:
      throw std::invalid_argument("testing: arrays have 1 to 3 dimensions");
  }
}
Tensor f32(const py::array& array) { return view(array, DType::f32); }
Tensor i32(const py::array& array) { return view(array, DType::i32); }

// A matrix as a Weight: float32 [out, in], uint16 (bf16 bits) [out, in], or uint8 (e4m3) with float32 scales.
Weight as_weight(const py::array& array, const py::object& scales = py::none()) {
  Weight weight{.out_features = array.shape(0), .in_features = array.shape(1), .data = array.data()};
  if (array.dtype().is(py::dtype::of<float>())) return weight;
  if (array.dtype().is(py::dtype::of<uint16_t>())) {
    weight.format = WeightFormat::bf16;
  } else if (array.dtype().is(py::dtype::of<uint8_t>())) {
    weight.format = WeightFormat::fp8_block;
    weight.scales = scales.cast<Array<float>>().data();
  } else {
    throw std::invalid_argument("testing: weights are float32, uint16 or uint8");
  }
  return weight;
}

py::dict to_dict(const ModelConfig& c) {
  py::dict d;
  d["architecture"] = c.architecture;
  d["vocab_size"] = c.vocab_size;
  d["hidden_size"] = c.hidden_size;
  d["num_layers"] = c.num_layers;
  d["num_attention_heads"] = c.num_attention_heads;
  d["q_lora_rank"] = c.q_lora_rank;
  d["kv_lora_rank"] = c.kv_lora_rank;
  d["qk_nope_head_dim"] = c.qk_nope_head_dim;
  d["qk_rope_head_dim"] = c.qk_rope_head_dim;
  d["v_head_dim"] = c.v_head_dim;
  d["ffn_hidden_size"] = c.ffn_hidden_size;
  d["expert_ffn_hidden_size"] = c.expert_ffn_hidden_size;
  d["n_routed_experts"] = c.n_routed_experts;
  d["zero_expert_num"] = c.zero_expert_num;
  d["moe_topk"] = c.moe_topk;
  d["routed_scaling_factor"] = c.routed_scaling_factor;
  d["mla_scale_q_lora"] = c.mla_scale_q_lora;
  d["mla_scale_kv_lora"] = c.mla_scale_kv_lora;
  d["tie_word_embeddings"] = c.tie_word_embeddings;
  d["rms_norm_eps"] = c.rms_norm_eps;
  d["rope_theta"] = c.rope_theta;
  d["max_position_embeddings"] = c.max_position_embeddings;
  d["bos_token_id"] = c.bos_token_id;
  d["eos_token_id"] = c.eos_token_id;
  d["torch_dtype"] = name_of(c.torch_dtype);
  d["fp8_blocks"] = c.fp8_blocks;
  d["warnings"] = c.warnings;
  d["yarn"] = py::none();
  if (c.yarn) {
    py::dict yarn;
    yarn["factor"] = c.yarn->factor;
    yarn["original_max_position_embeddings"] = c.yarn->original_max_position_embeddings;
    yarn["beta_fast"] = c.yarn->beta_fast;
    yarn["beta_slow"] = c.yarn->beta_slow;
    yarn["mscale"] = c.yarn->mscale;
    yarn["mscale_all_dim"] = c.yarn->mscale_all_dim;
    yarn["attention_factor"] = c.yarn->attention_factor;
    yarn["truncate"] = c.yarn->truncate;
    d["yarn"] = yarn;
  }
  d["ngram"] = py::none();
  if (c.ngram) {
    py::dict ngram;
    ngram["table_rows"] = c.ngram->table_rows;
    ngram["emb_neighbor_num"] = c.ngram->emb_neighbor_num;
    ngram["emb_split_num"] = c.ngram->emb_split_num;
    d["ngram"] = ngram;
  }
  return d;
}

// Ids the N-gram op computes for one sequence fed in chunks. The tables are one untouched value wide, so that the real
// model's row counts can be tested.
py::array_t<int32_t> ngram_ids(const std::vector<int32_t>& token_ids, int64_t vocab_size, int64_t table_rows,
                               int64_t max_order, int64_t splits, int32_t eos_token_id,
                               std::vector<int64_t> chunk_sizes) {
  const std::unique_ptr<Ops> ops = make_cpu_ops(1);
  const NgramConfig config{.table_rows = table_rows, .emb_neighbor_num = max_order, .emb_split_num = splits};
  std::vector<Buffer> memory;
  std::vector<Weight> tables;
  std::vector<int64_t> moduli, powers;
  for (int64_t t = 0; t < config.num_tables(); ++t) {
    const int64_t rows = config.rows_of(t);
    memory.emplace_back(ops->device(), rows * size_of(DType::bf16));
    tables.push_back(
        {.format = WeightFormat::bf16, .out_features = rows, .in_features = 1, .data = memory.back().data()});
    moduli.push_back(rows);
    append_powers(powers, vocab_size, rows, max_order);
  }
  const NgramTables ngram{.tables = tables,
                          .moduli = moduli,
                          .powers = powers,
                          .max_order = max_order,
                          .splits = splits,
                          .eos_token_id = eos_token_id};
  const int64_t num_tokens = static_cast<int64_t>(token_ids.size());
  const std::vector<int32_t> blocks = consecutive_blocks(num_tokens);
  Buffer lane(ops->device(), (static_cast<int64_t>(blocks.size()) + 1) * kBlockSize * 4);
  BatchBuffers buffers(ops->device(), num_tokens, 1, static_cast<int64_t>(blocks.size()));
  py::array_t<int32_t> ids({num_tokens, config.num_tables()});
  py::array_t<float> rows({num_tokens, config.num_tables()});
  if (chunk_sizes.empty()) chunk_sizes.push_back(num_tokens);
  int64_t start = 0;
  for (size_t i = 0; start < num_tokens; ++i) {
    const int64_t count = std::min(chunk_sizes[std::min(i, chunk_sizes.size() - 1)], num_tokens - start);
    const Chunk chunk{.token_ids = std::span(token_ids).subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                      .start = start,
                      .blocks = blocks};
    ops->ngram_lookup(i32(ids).slice(0, start, start + count), f32(rows).slice(0, start, start + count),
                      lane.tensor(DType::i32, {lane.bytes() / 4}), buffers.upload({&chunk, 1}), ngram);
    start += count;
  }
  return ids;
}

// Single ops on numpy arrays, on the CPU backend.
class TestOps {
 public:
  explicit TestOps(int num_threads) : ops_(make_cpu_ops(num_threads)) {}

  Array<float> linear(const Array<float>& x, const py::array& weight, const py::object& scales) {
    Array<float> out({x.shape(0), weight.shape(0)});
    ops_->linear(f32(out), f32(x), as_weight(weight, scales));
    return out;
  }

  // With a packed matrix, as pack_matrix makes it.
  Array<float> linear_packed(const Array<float>& x, const Array<uint8_t>& packed, const std::string& format,
                             int64_t out_features) {
    Weight weight{.out_features = out_features, .in_features = x.shape(1), .data = packed.data()};
    for (const WeightFormat candidate : kAllWeightFormats)
      if (format == name_of(candidate)) weight.format = candidate;
    if (packed.nbytes() != weight.num_bytes()) throw std::invalid_argument("testing: not the bytes of this format");
    Array<float> out({x.shape(0), out_features});
    ops_->linear(f32(out), f32(x), weight);
    return out;
  }

  Array<float> linear_per_head(const Array<float>& x, const py::array& weight) {
    Array<float> out({x.shape(0), x.shape(1), weight.shape(0) / x.shape(1)});
    ops_->linear_per_head(f32(out), f32(x), as_weight(weight));
    return out;
  }

  Array<float> rms_norm(const Array<float>& x, const Array<float>& weight, float eps) {
    Array<float> out({x.shape(0), x.shape(1)});
    ops_->rms_norm(f32(out), f32(x), f32(weight), eps);
    return out;
  }

  py::tuple add_rms_norm(const Array<float>& residual, const Array<float>& x, const Array<float>& weight, float eps) {
    Array<float> sum({x.shape(0), x.shape(1)}), out({x.shape(0), x.shape(1)});
    std::copy_n(residual.data(), residual.size(), sum.mutable_data());
    ops_->add_rms_norm(f32(out), f32(sum), f32(x), f32(weight), eps);
    return py::make_tuple(sum, out);
  }

  Array<float> silu_mul(const Array<float>& gate, const Array<float>& up) {
    Array<float> out({gate.shape(0), gate.shape(1)});
    ops_->silu_mul(f32(out), f32(gate), f32(up));
    return out;
  }

  Array<float> rope(const Array<float>& x, const Array<int32_t>& positions, const Array<float>& inv_freq,
                    float factor) {
    Array<float> out({x.shape(0), x.shape(1), x.shape(2)});
    std::copy_n(x.data(), x.size(), out.mutable_data());
    Array<float> cos({x.shape(0), x.shape(2) / 2}), sin({x.shape(0), x.shape(2) / 2});
    ops_->rope_angles(f32(cos), f32(sin), i32(positions), f32(inv_freq), factor);
    ops_->rope(f32(out), f32(cos), f32(sin));
    return out;
  }

  // Stores the rows of kv_a at positions 0..; returns the cache and the batch to attend from each of them with.
  struct StoredLatents {
    Buffer memory;
    Tensor latents;
    std::unique_ptr<BatchBuffers> buffers;
    ForwardBatch batch;
    Array<float> stored;  // as attention reads them: [T, kv_lora + rope]
  };
  StoredLatents store(const Array<float>& kv_a, const Array<float>& norm_weight, float eps,
                      const Array<float>& inv_freq, const std::string& cache_dtype, bool generated) {
    const int64_t num_tokens = kv_a.shape(0), dim = kv_a.shape(1), kv_lora = norm_weight.size(), rope = dim - kv_lora;
    const DType dtype = cache_dtype == "fp8"    ? DType::f8_e4m3
                        : cache_dtype == "int8" ? DType::i8
                        : cache_dtype == "bf16" ? DType::bf16
                                                : DType::f32;
    const std::vector<int32_t> blocks = consecutive_blocks(num_tokens);
    const int64_t num_blocks = static_cast<int64_t>(blocks.size()) + 1, row = latent_row_size(dtype, kv_lora, rope);
    StoredLatents s;
    s.memory = Buffer(ops_->device(), num_blocks * kBlockSize * row * size_of(dtype));
    std::memset(s.memory.data(), 0xff, static_cast<size_t>(s.memory.bytes()));  // NaN where nothing is stored
    s.latents = s.memory.tensor(dtype, {num_blocks, kBlockSize, row});
    s.buffers = std::make_unique<BatchBuffers>(ops_->device(), num_tokens, 1, num_blocks - 1);
    const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 0);
    const Chunk chunk{.token_ids = ids, .start = 0, .blocks = blocks, .generated = generated};
    s.batch = s.buffers->upload({&chunk, 1});
    Array<float> cos({num_tokens, inv_freq.size()}), sin({num_tokens, inv_freq.size()}), work({num_tokens, dim});
    std::copy_n(kv_a.data(), kv_a.size(), work.mutable_data());
    ops_->rope_angles(f32(cos), f32(sin), s.batch.positions, f32(inv_freq), 1.0f);
    ops_->mla_store(s.latents, f32(work), f32(norm_weight), eps, f32(cos), f32(sin), s.batch);
    s.stored = Array<float>({num_tokens, dim});
    std::vector<float> scratch(static_cast<size_t>(kBlockSize * dim));
    for (int64_t p = 0; p < num_tokens; ++p)
      std::copy_n(cpu::read_latents(scratch.data(), s.latents, blocks.data(), p, p + 1, kv_lora, rope), dim,
                  s.stored.mutable_data(p));
    return s;
  }

  py::tuple mla_decode(const Array<float>& kv_a, const Array<float>& norm_weight, float eps,
                       const Array<float>& q_latent, const Array<float>& q_rope, const Array<float>& inv_freq,
                       float scale, const std::string& cache_dtype) {
    const StoredLatents s = store(kv_a, norm_weight, eps, inv_freq, cache_dtype, true);
    Array<float> out({q_latent.shape(0), q_latent.shape(1), q_latent.shape(2)});
    ops_->mla_decode(f32(out), f32(q_latent), f32(q_rope), s.latents, s.batch, scale);
    return py::make_tuple(out, s.stored);
  }

  // v: values a head.
  py::tuple mla_prefill(const Array<float>& kv_a, const Array<float>& norm_weight, float eps, const Array<float>& q,
                        const py::array& k_up, const py::array& v_up, const Array<float>& inv_freq, float scale,
                        const std::string& cache_dtype) {
    const StoredLatents s = store(kv_a, norm_weight, eps, inv_freq, cache_dtype, false);
    Array<float> out({q.shape(0), q.shape(1), v_up.shape(0) / q.shape(1)});
    ops_->mla_prefill(f32(out), f32(q), s.latents, as_weight(k_up), as_weight(v_up), s.batch, scale);
    return py::make_tuple(out, s.stored);
  }

  // (picks [T, topk], weights [T, topk], identity_weight [T], out [T, hidden] of the routed experts).
  py::tuple moe(const Array<float>& x, const Array<float>& classifier, const Array<float>& bias, int64_t topk,
                float scaling_factor, const std::vector<py::array>& gate, const std::vector<py::array>& up,
                const std::vector<py::array>& down, int64_t num_real_tokens) {
    const int64_t num_tokens = x.shape(0), num_experts = static_cast<int64_t>(gate.size()), rows = num_tokens * topk;
    const int64_t width = gate.at(0).shape(0), hidden = x.shape(1);
    Array<int32_t> picks({num_tokens, topk}), offsets(num_experts + 1), tokens(rows), permuted({num_tokens, topk});
    Array<float> weights({num_tokens, topk}), identity(num_tokens), scratch({num_tokens, classifier.shape(0)});
    Array<int32_t> num_real(std::vector<py::ssize_t>{1});
    num_real.mutable_data()[0] = static_cast<int32_t>(num_real_tokens < 0 ? num_tokens : num_real_tokens);
    Routing routing{.expert_idx = i32(picks),
                    .expert_weights = f32(weights),
                    .identity_weight = f32(identity),
                    .expert_offsets = i32(offsets),
                    .permuted_tokens = i32(tokens),
                    .permuted_rows = i32(permuted)};
    ops_->moe_route(routing, f32(scratch), f32(x), as_weight(classifier), f32(bias), i32(num_real), num_experts, 0,
                    scaling_factor);
    std::vector<Weight> gates, ups, downs;
    for (int64_t e = 0; e < num_experts; ++e) {
      gates.push_back(as_weight(gate[static_cast<size_t>(e)]));
      ups.push_back(as_weight(up[static_cast<size_t>(e)]));
      downs.push_back(as_weight(down[static_cast<size_t>(e)]));
    }
    Array<float> out({num_tokens, hidden}), expert_gate({rows, width}), expert_up({rows, width}),
        expert_out({rows, hidden});
    ops_->moe_experts(f32(out), f32(expert_gate), f32(expert_up), f32(expert_out), f32(x), routing,
                      {.gate_proj = gates, .up_proj = ups, .down_proj = downs});
    return py::make_tuple(picks, weights, identity, out);
  }

  // One draw a row: params = dict of SamplingRow fields, histories = the ids before the draw.
  std::vector<int32_t> sample(const Array<float>& logits, const std::vector<py::dict>& params,
                              const std::vector<std::vector<int32_t>>& histories) {
    const SamplingCase c(params, histories);
    std::vector<int32_t> ids(static_cast<size_t>(logits.shape(0)));
    ops_->sample(Tensor(ids.data(), DType::i32, {logits.shape(0)}), f32(logits), c.rows, c.lane_tensor(),
                 c.table_tensor());
    return ids;
  }

  // The scores whose softmax a row is drawn from.
  Array<float> process_logits(const Array<float>& logits, const py::dict& params, const std::vector<int32_t>& history) {
    const SamplingCase c({params}, {history});
    Array<float> scores(logits.size());
    std::copy_n(logits.data(), logits.size(), scores.mutable_data());
    cpu::process_logits(scores.mutable_data(), logits.size(), c.rows[0], {c.lane.data(), c.tables.data()});
    return scores;
  }

  // (logprobs [rows, 1 + top], ids [rows, 1 + top], ranks [rows]).
  py::tuple token_logprobs(const Array<float>& logits, const Array<int32_t>& token_ids, int64_t top) {
    const int64_t rows = logits.shape(0);
    Array<float> logprobs({rows, 1 + top});
    Array<int32_t> ids({rows, 1 + top}), ranks(rows);
    ops_->token_logprobs(f32(logprobs), i32(ids), i32(ranks), f32(logits), i32(token_ids));
    return py::make_tuple(logprobs, ids, ranks);
  }

 private:
  std::unique_ptr<Ops> ops_;
};

// The model under explicit batches: the caller owns the block tables.
class TestModel {
 public:
  TestModel(const std::string& folder, const std::string& dtype, int num_threads, int64_t max_tokens,
            int64_t num_blocks, const std::string& kv_cache_dtype)
      : options_{.dtype = dtype,
                 .kv_cache_dtype = kv_cache_dtype,
                 .max_num_batched_tokens = max_tokens,
                 .num_threads = num_threads},
        loaded_(load_model(folder, options_)),
        cache_(loaded_.ops->device(), loaded_.config, num_blocks, loaded_.kv_cache_dtype),
        buffers_(loaded_.ops->device(), max_tokens, max_tokens, num_blocks) {}

  // chunks: (block table, position of the first token, token ids) per sequence; the first num_generated of them are of
  // generated tokens. num_rows: with padding. Returns the logits of every token.
  Array<float> forward(const std::vector<std::tuple<std::vector<int32_t>, int64_t, std::vector<int32_t>>>& chunks,
                       size_t num_generated, int64_t num_rows) {
    std::vector<Chunk> views;
    for (const auto& [blocks, start, ids] : chunks)
      views.push_back({.token_ids = ids, .start = start, .blocks = blocks, .generated = views.size() < num_generated});
    buffers_.stage(views, 0, num_rows);
    const ForwardBatch batch = buffers_.upload(0);
    const int64_t num_tokens = batch.num_real_tokens.data<int32_t>()[0];
    Array<float> logits({num_tokens, loaded_.config.vocab_size});
    Array<int32_t> rows(num_tokens);
    for (int64_t i = 0; i < num_tokens; ++i) rows.mutable_data()[i] = static_cast<int32_t>(i);
    const Tensor out = f32(logits), all = i32(rows);
    const GilRelease nogil;
    loaded_.model->forward(batch, cache_);
    loaded_.model->logits(out, all);
    return logits;
  }

  // Rows of the N-gram tables the last forward looked up.
  Array<int32_t> last_ngram_ids() {
    const Tensor ids = loaded_.model->last_ngram_ids();
    if (ids.empty()) return Array<int32_t>(0);
    Array<int32_t> out({ids.size(0), ids.size(1)});
    std::copy_n(ids.data<int32_t>(), ids.numel(), out.mutable_data());
    return out;
  }

  // Stored latents of the first num_tokens positions of a sequence, as attention reads them: [T, kv_lora + rope].
  Array<float> latents(int64_t sub_layer, const std::vector<int32_t>& blocks, int64_t num_tokens) {
    const ModelConfig& c = loaded_.config;
    Array<float> out({num_tokens, c.latent_dim()});
    std::vector<float> scratch(static_cast<size_t>(c.latent_dim()));
    for (int64_t p = 0; p < num_tokens; ++p)
      std::copy_n(cpu::read_latents(scratch.data(), cache_.latents(sub_layer), blocks.data(), p, p + 1, c.kv_lora_rank,
                                    c.qk_rope_head_dim),
                  c.latent_dim(), out.mutable_data(p));
    return out;
  }

  std::vector<int32_t> lane(const std::vector<int32_t>& blocks, int64_t num_tokens) {
    std::vector<int32_t> ids;
    for (int64_t p = 0; p < num_tokens; ++p)
      ids.push_back(
          cache_.lane().data<int32_t>()[blocks.at(static_cast<size_t>(p / kBlockSize)) * kBlockSize + p % kBlockSize]);
    return ids;
  }

  // Fills every latent of the cache with NaN.
  void poison() { poison_blocks(cache_, loaded_.config, 0, cache_.num_blocks()); }

  std::map<std::string, std::string> weight_formats() const {
    const ModelWeights& w = loaded_.model->weights();
    const LayerWeights& layer = w.layers.at(0);
    std::map<std::string, std::string> formats;
    const auto add = [&](const char* name, const Weight& weight) {
      if (!weight.empty()) formats[name] = str_cat(name_of(weight.format), "@", name_of(weight.placement));
    };
    add("word_embedding", w.word_embedding);
    if (!w.ngram.tables.empty()) add("ngram_table", w.ngram.tables[0]);
    add("ngram_projection", w.ngram.projection);
    add("q_b_proj", layer.attention[0].q_b_proj);
    add("k_up", layer.attention[0].k_up);
    add("gate_proj", layer.ffn[0].gate_proj);
    add("classifier", layer.moe.classifier);
    if (!layer.moe.gate_proj.empty()) add("expert_gate_proj", layer.moe.gate_proj[0]);
    add("lm_head", w.lm_head);
    return formats;
  }

 private:
  EngineOptions options_;
  LoadedModel loaded_;
  KvCache cache_;
  BatchBuffers buffers_;
};

}  // namespace

void poison_blocks(const KvCache& cache, const ModelConfig& config, int64_t begin, int64_t end) {
  for (int64_t sub_layer = 0; sub_layer < KvCache::num_sub_layers(config); ++sub_layer)
    for (int64_t block = begin; block < end; ++block) {
      const Tensor latents = cache.latents(sub_layer).index(0, block);
      std::memset(latents.raw(), 0xff, static_cast<size_t>(latents.num_bytes()));
    }
}

void register_testing(py::module_& module) {
  py::module_ testing = module.def_submodule("testing", "For longcat's own tests; may change at any time.");

  testing.def("available_memory", [](const std::string& root) { return available_memory(root); }, py::arg("root"));
  testing.def(
      "cached_table_bytes",
      [](const std::string& folder) {
        const Checkpoint checkpoint(folder);
        int64_t bytes = 0;
        for (const auto& [name, tensor] : checkpoint.tensors())
          if (name.starts_with("model.ngram_embeddings.embedders."))
            bytes += cached_bytes(tensor.data, static_cast<int64_t>(tensor.num_bytes));
        return bytes;
      },
      py::arg("folder"));
  testing.def("parse_safetensors_header", [](const py::bytes& header, uint64_t data_bytes) {
    std::map<std::string, py::tuple> entries;
    for (const auto& [name, entry] : parse_safetensors_header(std::string_view(header), data_bytes, "header"))
      entries[name] = py::make_tuple(name_of(entry.dtype), entry.shape, entry.begin, entry.end);
    return entries;
  });
  testing.def("parse_model_config",
              [](const std::string& text) { return to_dict(parse_model_config(text, "config.json")); });
  testing.def("open_checkpoint", [](const std::string& folder) {
    const Checkpoint checkpoint(folder);
    std::map<std::string, py::tuple> tensors;
    for (const auto& [name, tensor] : checkpoint.tensors())
      tensors[name] = py::make_tuple(name_of(tensor.dtype), tensor.shape);
    return tensors;
  });
  testing.def("rope_scaling", [](const std::string& config_text) {
    const RopeScaling rope = make_rope_scaling(parse_model_config(config_text, "config.json"));
    return py::make_tuple(rope.inv_freq, rope.cos_sin_factor, rope.softmax_factor);
  });
  testing.def("ngram_ids", &ngram_ids, py::arg("token_ids"), py::arg("vocab_size"), py::arg("table_rows"),
              py::arg("max_order"), py::arg("splits"), py::arg("eos_token_id"),
              py::arg("chunk_sizes") = std::vector<int64_t>{});
  testing.def("philox4x32", [](std::array<uint32_t, 4> counter, uint64_t key) { return philox4x32(counter, key); });
  testing.def("sampling_uniform", &sampling_uniform);
  testing.def("kv_piece_end", &kv_piece_end);
  testing.def("to_e4m3", &to_e4m3);
  testing.def("to_bf16", [](float x) { return to_bf16(x).bits; });
  testing.def("half_to_float", &half_to_float);
  testing.def("e4m3_to_float", &e4m3_to_float);

  py::class_<TestOps>(testing, "Ops")
      .def(py::init<int>(), py::arg("num_threads") = 1)
      .def("linear", &TestOps::linear, py::arg("x"), py::arg("weight"), py::arg("scales") = py::none())
      .def("linear_packed", &TestOps::linear_packed, py::arg("x"), py::arg("packed"), py::arg("format"),
           py::arg("out_features"))
      .def("linear_per_head", &TestOps::linear_per_head)
      .def("rms_norm", &TestOps::rms_norm)
      .def("add_rms_norm", &TestOps::add_rms_norm)
      .def("silu_mul", &TestOps::silu_mul)
      .def("rope", &TestOps::rope)
      .def("mla_decode", &TestOps::mla_decode)
      .def("mla_prefill", &TestOps::mla_prefill)
      .def("moe", &TestOps::moe, py::arg("x"), py::arg("classifier"), py::arg("bias"), py::arg("topk"),
           py::arg("scaling_factor"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("num_real_tokens") = -1)
      .def("sample", &TestOps::sample)
      .def("process_logits", &TestOps::process_logits)
      .def("token_logprobs", &TestOps::token_logprobs);

  py::class_<TestModel>(testing, "Model")
      .def(py::init<const std::string&, const std::string&, int, int64_t, int64_t, const std::string&>(),
           py::arg("folder"), py::arg("dtype") = "auto", py::arg("num_threads") = 1, py::arg("max_tokens") = 512,
           py::arg("num_blocks") = 64, py::arg("kv_cache_dtype") = "auto")
      .def("forward", &TestModel::forward, py::arg("chunks"), py::arg("num_generated") = 0, py::arg("num_rows") = 0)
      .def("last_ngram_ids", &TestModel::last_ngram_ids)
      .def("latents", &TestModel::latents)
      .def("lane", &TestModel::lane)
      .def("poison", &TestModel::poison)
      .def("weight_formats", &TestModel::weight_formats);

  register_testing_cuda_host(testing);
  register_testing_device(testing);
  register_testing_device_model(testing);
  register_testing_nccl(testing);
  register_testing_packed(testing);
  register_testing_engine(testing);
  register_testing_scheduler(testing);
}

}  // namespace longcat
