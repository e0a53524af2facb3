// Single ops of the CPU backend, on NumPy arrays.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/thread_pool.h"
#include "bindings/bindings.h"
#include "cpu/attention/index_scores.h"
#include "cpu/attention/latents.h"
#include "cpu/sample.h"
#include "engine/batch_buffers.h"
#include "io/model_config.h"
#include "model/weights.h"
#include "ops/backend.h"
#include "tests/native/arrays.h"
#include "tests/native/native.h"
#include "tests/native/sampling_case.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Returns the N-gram ids of one sequence that is fed in chunks. The tables are one value wide and never read, so that
// tests can use the real model's row counts.
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

// How often a pool visits each of `count` items, over `times` loops. The item `failing` throws each time.
std::vector<int> pool_visits(int num_threads, int64_t count, int64_t grain, int times, int64_t failing) {
  ThreadPool pool(num_threads);
  std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
  for (int i = 0; i < times; ++i) {
    try {
      pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          ++visits[static_cast<size_t>(item)];
          if (item == failing) throw Error("failing");
        }
      });
      LC_CHECK(failing < 0);
    } catch (const Error&) {
      if (failing < 0) throw;
    }
  }
  return {visits.begin(), visits.end()};
}

class TestOps {
 public:
  TestOps(int num_threads, const std::string& dtype)
      : ops_(make_cpu_ops(num_threads)), rounds_queries_(dtype == "bf16") {
    ops_->use_dtype(dtype == "bf16" ? DType::bf16 : DType::f32);
  }

  Array<float> linear(const Array<float>& x, const py::array& weight, const py::object& scales) {
    Array<float> out({x.shape(0), weight.shape(0)});
    ops_->linear(f32(out), f32(x), as_weight(weight, scales));
    return out;
  }

  // linear() with a packed matrix, as pack_matrix makes it.
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

  // linear_per_head() with a matrix as the loader prepares it.
  Array<float> linear_per_head(const Array<float>& x, const py::array& weight) {
    Array<float> out({x.shape(0), x.shape(1), weight.shape(0) / x.shape(1)});
    Buffer storage;
    ops_->linear_per_head(f32(out), f32(x), ops_->prepare(as_weight(weight), storage));
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

  // Stores the rows of kv_a at positions 0, 1, ... of a new cache. Returns the cache, and a batch that attends from
  // each of these positions.
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
    std::memset(s.memory.data(), 0xff, static_cast<size_t>(s.memory.bytes()));  // slots without a token hold NaN
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

  // selected: [T, topk] for sparse attention, else without elements.
  py::tuple mla_decode(const Array<float>& kv_a, const Array<float>& norm_weight, float eps,
                       const Array<float>& q_latent, const Array<float>& q_rope, const Array<float>& inv_freq,
                       float scale, const std::string& cache_dtype, const Array<int32_t>& selected) {
    const StoredLatents s = store(kv_a, norm_weight, eps, inv_freq, cache_dtype, true);
    Array<float> out({q_latent.shape(0), q_latent.shape(1), q_latent.shape(2)});
    if (selected.size() == 0) {
      ops_->mla_decode(f32(out), f32(q_latent), f32(q_rope), s.latents, s.batch, scale);
    } else {
      ops_->mla_decode_selected(f32(out), f32(q_latent), f32(q_rope), s.latents, i32(selected), s.batch, scale);
    }
    return py::make_tuple(out, s.stored);
  }

  // v_up: [heads * values of a head, kv_lora].
  py::tuple mla_prefill(const Array<float>& kv_a, const Array<float>& norm_weight, float eps, const Array<float>& q,
                        const py::array& k_up, const py::array& v_up, const Array<float>& inv_freq, float scale,
                        const std::string& cache_dtype, const Array<int32_t>& selected) {
    const StoredLatents s = store(kv_a, norm_weight, eps, inv_freq, cache_dtype, false);
    Array<float> out({q.shape(0), q.shape(1), v_up.shape(0) / q.shape(1)});
    if (selected.size() == 0) {
      ops_->mla_prefill(f32(out), f32(q), s.latents, as_weight(k_up), as_weight(v_up), s.batch, scale);
    } else {
      Array<float> q_latent({q.shape(0), q.shape(1), norm_weight.size()}), latent_out(q_latent.size());
      const Tensor spare = f32(latent_out).reshape({q.shape(0), q.shape(1), norm_weight.size()});
      ops_->mla_prefill_selected(f32(out), f32(q), s.latents, as_weight(k_up), as_weight(v_up), i32(selected),
                                 f32(q_latent), spare, s.batch, scale);
    }
    return py::make_tuple(out, s.stored);
  }

  // The indexer for the last T of the positions of `keys` [n, dim], as `stored` in the index cache. Returns (selected
  // [T, topk], -1 in rows of tokens that attend to all positions; scores [T, n] of all positions).
  py::tuple select_positions(const Array<float>& keys, const Array<float>& q, const Array<float>& head_weights,
                             int64_t topk, int64_t init_tokens, int64_t local_tokens, float scale,
                             const std::string& stored) {
    const int64_t n = keys.shape(0), dim = keys.shape(1), num_tokens = q.shape(0);
    const DType dtype = stored == "int8" ? DType::i8 : stored == "bf16" ? DType::bf16 : DType::f32;
    const std::vector<int32_t> blocks = consecutive_blocks(n);
    const int64_t num_blocks = static_cast<int64_t>(blocks.size()) + 1, row = index_key_size(dtype, dim);
    const Buffer memory(ops_->device(), num_blocks * kBlockSize * row * size_of(dtype));
    std::memset(memory.data(), 0xff, static_cast<size_t>(memory.bytes()));  // slots without a token hold NaN
    const Tensor index_keys = memory.tensor(dtype, {num_blocks, kBlockSize, row});
    for (int64_t p = 0; p < n; ++p) cpu::store_index_key(index_keys, blocks.data(), p, keys.data(p), dim);
    BatchBuffers buffers(ops_->device(), num_tokens, 1, num_blocks - 1);
    const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 0);
    const Chunk chunk{.token_ids = ids, .start = n - num_tokens, .blocks = blocks, .generated = false};
    const ForwardBatch batch = buffers.upload({&chunk, 1});
    Array<int32_t> selected({num_tokens, topk});
    std::fill_n(selected.mutable_data(), selected.size(), -1);
    ops_->select_positions(i32(selected), f32(q), f32(head_weights), index_keys, batch,
                           {topk, init_tokens, local_tokens}, scale);
    Array<float> scores({num_tokens, n});
    const cpu::IndexArithmetic arithmetic = cpu::index_arithmetic(dtype, dim, rounds_queries_);
    cpu::IndexTile tile;
    cpu::IndexQuery query;
    for (int64_t t = 0; t < num_tokens; ++t) {
      query.prepare(arithmetic, q.data(t), dim, head_weights.data(t), q.shape(1), dim, scale);
      for (int64_t begin = 0; begin < n; begin += tile.num_keys()) {
        tile.load(arithmetic, index_keys, blocks.data(), begin, n, dim);
        query.score(scores.mutable_data(t) + begin, tile, tile.num_keys(), true);
      }
    }
    return py::make_tuple(selected, scores);
  }

  // Returns (picks [T, topk], weights [T, topk], identity_weight [T], out [T, hidden] of the routed experts).
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

  // Draws one token for each row. params: a dict of SamplingRow fields for each row; histories: the ids before the
  // draw.
  std::vector<int32_t> sample(const Array<float>& logits, const std::vector<py::dict>& params,
                              const std::vector<std::vector<int32_t>>& histories) {
    const SamplingCase c(params, histories);
    std::vector<int32_t> ids(static_cast<size_t>(logits.shape(0)));
    ops_->set_sampling_rows(c.rows);
    ops_->sample(Tensor(ids.data(), DType::i32, {logits.shape(0)}), f32(logits), c.lane_tensor(), c.table_tensor());
    return ids;
  }

  // Returns the scores whose softmax is the distribution of a row's draw.
  Array<float> process_logits(const Array<float>& logits, const py::dict& params, const std::vector<int32_t>& history) {
    const SamplingCase c({params}, {history});
    Array<float> scores(logits.size());
    std::copy_n(logits.data(), logits.size(), scores.mutable_data());
    cpu::process_logits(scores.mutable_data(), logits.size(), c.rows[0], {c.lane.data(), c.tables.data()});
    return scores;
  }

  // Returns (logprobs [rows, 1 + top], ids [rows, 1 + top], ranks [rows]).
  py::tuple token_logprobs(const Array<float>& logits, const Array<int32_t>& token_ids, int64_t top) {
    const int64_t rows = logits.shape(0);
    Array<float> logprobs({rows, 1 + top});
    Array<int32_t> ids({rows, 1 + top}), ranks(rows);
    ops_->token_logprobs(f32(logprobs), i32(ids), i32(ranks), f32(logits), i32(token_ids));
    return py::make_tuple(logprobs, ids, ranks);
  }

 private:
  std::unique_ptr<Ops> ops_;
  bool rounds_queries_;
};

}  // namespace

void register_cpu_ops(py::module_& testing) {
  testing.def("ngram_ids", &ngram_ids, py::arg("token_ids"), py::arg("vocab_size"), py::arg("table_rows"),
              py::arg("max_order"), py::arg("splits"), py::arg("eos_token_id"),
              py::arg("chunk_sizes") = std::vector<int64_t>{});
  testing.def("pool_visits", &pool_visits, py::arg("num_threads"), py::arg("count"), py::arg("grain"), py::arg("times"),
              py::arg("failing") = -1);
  py::class_<TestOps>(testing, "Ops")
      .def(py::init<int, const std::string&>(), py::arg("num_threads") = 1, py::arg("dtype") = "f32")
      .def("linear", &TestOps::linear, py::arg("x"), py::arg("weight"), py::arg("scales") = py::none())
      .def("linear_packed", &TestOps::linear_packed, py::arg("x"), py::arg("packed"), py::arg("format"),
           py::arg("out_features"))
      .def("linear_per_head", &TestOps::linear_per_head)
      .def("rms_norm", &TestOps::rms_norm)
      .def("add_rms_norm", &TestOps::add_rms_norm)
      .def("silu_mul", &TestOps::silu_mul)
      .def("rope", &TestOps::rope)
      .def("mla_decode", &TestOps::mla_decode, py::arg("kv_a"), py::arg("norm_weight"), py::arg("eps"),
           py::arg("q_latent"), py::arg("q_rope"), py::arg("inv_freq"), py::arg("scale"), py::arg("cache_dtype"),
           py::arg("selected") = Array<int32_t>(0))
      .def("mla_prefill", &TestOps::mla_prefill, py::arg("kv_a"), py::arg("norm_weight"), py::arg("eps"), py::arg("q"),
           py::arg("k_up"), py::arg("v_up"), py::arg("inv_freq"), py::arg("scale"), py::arg("cache_dtype"),
           py::arg("selected") = Array<int32_t>(0))
      .def("select_positions", &TestOps::select_positions, py::arg("keys"), py::arg("q"), py::arg("head_weights"),
           py::arg("topk"), py::arg("init_tokens"), py::arg("local_tokens"), py::arg("scale"),
           py::arg("stored") = "f32")
      .def("moe", &TestOps::moe, py::arg("x"), py::arg("classifier"), py::arg("bias"), py::arg("topk"),
           py::arg("scaling_factor"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("num_real_tokens") = -1)
      .def("sample", &TestOps::sample)
      .def("process_logits", &TestOps::process_logits)
      .def("token_logprobs", &TestOps::token_logprobs);
}

}  // namespace longcat
