// Single ops on any device, for tests that compare the backends. Arrays go to the device and back; activations are
// rounded to the device's dtype on the way.
#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "bindings/bindings.h"
#include "engine/batch_buffers.h"
#include "model/weights.h"
#include "ops/packed.h"
#include "tests/native/arrays.h"
#include "tests/native/chunks.h"
#include "tests/native/devices.h"
#include "tests/native/native.h"
#include "tests/native/sampling_case.h"

namespace py = pybind11;

namespace longcat {

namespace {

std::vector<int64_t> shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

Tensor shaped(void* data, DType dtype, const std::vector<int64_t>& s) {
  switch (s.size()) {
    case 1:
      return Tensor(data, dtype, {s[0]});
    case 2:
      return Tensor(data, dtype, {s[0], s[1]});
    case 3:
      return Tensor(data, dtype, {s[0], s[1], s[2]});
    default:
      throw std::invalid_argument("testing: arrays have 1 to 3 dimensions");
  }
}

// The device memory of one call.
class Scratch {
 public:
  explicit Scratch(Ops& ops) : ops_(ops) {}

  Tensor empty(DType dtype, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    memory_.emplace_back(ops_.device(), std::max<int64_t>(count, 1) * size_of(dtype));
    return shaped(memory_.back().data(), dtype, shape);
  }
  Tensor activations(const std::vector<int64_t>& shape) { return empty(ops_.activation_dtype(), shape); }

  Tensor f32(const Array<float>& array) { return copied(array, DType::f32); }
  Tensor i32(const Array<int32_t>& array) { return copied(array, DType::i32); }
  Tensor activations(const Array<float>& array) {
    if (ops_.activation_dtype() == DType::f32) return f32(array);
    std::vector<bf16> rounded(static_cast<size_t>(array.size()));
    std::transform(array.data(), array.data() + array.size(), rounded.begin(), to_bf16);
    const Tensor out = activations(shape_of(array));
    ops_.device().copy_from_host(out.raw(), rounded.data(), out.num_bytes());
    return out;
  }

  Weight router(const Array<float>& array) {
    Buffer storage;
    const Weight prepared = ops_.prepare_router(
        {.out_features = array.shape(0), .in_features = array.shape(1), .data = array.data()}, storage);
    if (storage.data()) memory_.push_back(std::move(storage));
    return prepared;
  }

  // Makes a weight [out, in] of float32, uint16 (bf16 bits), or uint8 (e4m3) with float32 scales.
  Weight weight(const py::array& array, const py::object& scales = py::none()) {
    Weight logical{.out_features = array.shape(0), .in_features = array.shape(1), .data = array.data()};
    Array<float> scale_array;
    if (array.dtype().is(py::dtype::of<uint16_t>())) {
      logical.format = WeightFormat::bf16;
    } else if (array.dtype().is(py::dtype::of<uint8_t>())) {
      logical.format = WeightFormat::fp8_block;
      scale_array = scales.cast<Array<float>>();
      logical.scales = scale_array.data();
    } else if (!array.dtype().is(py::dtype::of<float>())) {
      throw std::invalid_argument("testing: weights are float32, uint16 or uint8");
    }
    Buffer storage;
    const Weight prepared = ops_.prepare(logical, storage);
    if (storage.data()) memory_.push_back(std::move(storage));
    return prepared;
  }

  Weight packed(const Array<uint8_t>& array, const std::string& format, int64_t out_features, int64_t in_features) {
    const Weight logical{.format = packed_format(format),
                         .out_features = out_features,
                         .in_features = in_features,
                         .data = array.data()};
    if (array.nbytes() != logical.num_bytes()) throw std::invalid_argument("testing: not the bytes of this format");
    Buffer storage;
    const Weight prepared = ops_.prepare(logical, storage);
    if (storage.data()) memory_.push_back(std::move(storage));
    return prepared;
  }

  Array<float> floats(const Tensor& t) {
    std::vector<py::ssize_t> shape;
    for (int d = 0; d < t.ndim(); ++d) shape.push_back(t.size(d));
    Array<float> out(shape);
    if (t.dtype() == DType::f32) {
      ops_.device().copy_to_host(out.mutable_data(), t.raw(), t.num_bytes());
    } else {
      std::vector<bf16> stored(static_cast<size_t>(t.numel()));
      ops_.device().copy_to_host(stored.data(), t.raw(), t.num_bytes());
      std::transform(stored.begin(), stored.end(), out.mutable_data(), [](bf16 x) { return to_float(x); });
    }
    return out;
  }
  Array<int32_t> ints(const Tensor& t) {
    std::vector<py::ssize_t> shape;
    for (int d = 0; d < t.ndim(); ++d) shape.push_back(t.size(d));
    Array<int32_t> out(shape);
    ops_.device().copy_to_host(out.mutable_data(), t.raw(), t.num_bytes());
    return out;
  }
  Array<uint8_t> bytes(const void* data, int64_t count) {
    Array<uint8_t> out(count);
    ops_.device().copy_to_host(out.mutable_data(), data, count);
    return out;
  }

 private:
  template <class T>
  Tensor copied(const Array<T>& array, DType dtype) {
    const Tensor out = empty(dtype, shape_of(array));
    ops_.device().copy_from_host(out.raw(), array.data(), out.num_bytes());
    return out;
  }

  Ops& ops_;
  std::vector<Buffer> memory_;
};

class DeviceOps {
 public:
  explicit DeviceOps(const std::string& device) : ops_(make_test_ops(device, 1)) {}

  std::string activation_dtype() const { return name_of(ops_->activation_dtype()); }

  // Of the rows of the next calls, the first `count` are generated tokens.
  void set_generated(int64_t count) {
    ForwardBatch batch;
    batch.num_decode_tokens = count;
    ops_->begin_step(batch);
  }

  Array<float> linear(const Array<float>& x, const py::array& weight, const py::object& scales, bool f32_out) {
    Scratch s(*ops_);
    const std::vector<int64_t> shape{x.shape(0), weight.shape(0)};
    const Tensor out = f32_out ? s.empty(DType::f32, shape) : s.activations(shape);
    ops_->linear(out, s.activations(x), s.weight(weight, scales));
    return s.floats(out);
  }

  // linear() with the first rows of a matrix, alone: of float32, bf16 or e4m3 with scales, or packed in `format`.
  Array<float> linear_first_rows(const Array<float>& x, const py::array& weight, const py::object& scales,
                                 const std::string& format, int64_t out_features, int64_t rows) {
    Scratch s(*ops_);
    const Weight whole = format.empty() ? s.weight(weight, scales) : s.packed(weight, format, out_features, x.shape(1));
    Buffer storage;
    const Weight first = ops_->first_rows(whole, rows, storage);
    const Tensor out = s.empty(DType::f32, {x.shape(0), rows});
    ops_->linear(out, s.activations(x), first);
    return s.floats(out);
  }

  // A matrix in a packed format, as the loader prepares it: linear(), and its rows by embed().
  Array<float> linear_packed(const Array<float>& x, const Array<uint8_t>& packed, const std::string& format,
                             int64_t out_features, bool f32_out) {
    Scratch s(*ops_);
    const std::vector<int64_t> shape{x.shape(0), out_features};
    const Tensor out = f32_out ? s.empty(DType::f32, shape) : s.activations(shape);
    ops_->linear(out, s.activations(x), s.packed(packed, format, out_features, x.shape(1)));
    return s.floats(out);
  }
  Array<float> packed_rows(const Array<int32_t>& rows, const Array<uint8_t>& packed, const std::string& format,
                           int64_t num_rows, int64_t dim) {
    Scratch s(*ops_);
    const Tensor out = s.activations({rows.size(), dim});
    ops_->embed(out, s.i32(rows), s.packed(packed, format, num_rows, dim), 0, {}, {}, 1);
    return s.floats(out);
  }

  // Returns the values of the matrix that quantize_fp8 makes of a float32 or uint16 (bf16 bits) matrix. It multiplies
  // the unit vectors by that matrix.
  Array<float> quantized(const py::array& matrix) {
    Scratch s(*ops_);
    const int64_t rows = matrix.shape(0), cols = matrix.shape(1);
    const bool is_bf16 = matrix.dtype().is(py::dtype::of<uint16_t>());
    Buffer storage;
    const Weight weight = ops_->quantize_fp8({.format = is_bf16 ? WeightFormat::bf16 : WeightFormat::f32,
                                              .out_features = rows,
                                              .in_features = cols,
                                              .data = matrix.data()},
                                             storage);
    Array<float> units({cols, cols});
    std::fill_n(units.mutable_data(), units.size(), 0.0f);
    for (int64_t i = 0; i < cols; ++i) units.mutable_at(i, i) = 1;
    const Tensor out = s.empty(DType::f32, {cols, rows});
    ops_->linear(out, s.activations(units), weight);
    return s.floats(out);
  }

  Array<float> linear_per_head(const Array<float>& x, const py::array& weight) {
    Scratch s(*ops_);
    const Tensor out = s.activations({x.shape(0), x.shape(1), weight.shape(0) / x.shape(1)});
    ops_->linear_per_head(out, s.activations(x), s.weight(weight));
    return s.floats(out);
  }

  Array<float> rms_norm(const Array<float>& x, const Array<float>& weight, float eps) {
    Scratch s(*ops_);
    const Tensor t = s.activations(x);
    ops_->rms_norm(t, t, s.f32(weight), eps);
    return s.floats(t);
  }

  py::tuple add_rms_norm(const Array<float>& residual, const Array<float>& x, const Array<float>& weight, float eps) {
    Scratch s(*ops_);
    const Tensor sum = s.activations(residual), out = s.activations(shape_of(residual));
    ops_->add_rms_norm(out, sum, s.activations(x), s.f32(weight), eps);
    return py::make_tuple(s.floats(sum), s.floats(out));
  }

  Array<float> add(const Array<float>& x, const Array<float>& y) {
    Scratch s(*ops_);
    const Tensor sum = s.activations(x);
    ops_->add(sum, s.activations(y));
    return s.floats(sum);
  }

  Array<float> add_scaled_rows(const Array<float>& x, const Array<float>& y, const Array<float>& row_weight) {
    Scratch s(*ops_);
    const Tensor sum = s.activations(x);
    ops_->add_scaled_rows(sum, s.activations(y), s.f32(row_weight));
    return s.floats(sum);
  }

  // fused: the device's own op; otherwise the ops that it replaces.
  py::tuple add_shortcut_rms_norm(const Array<float>& residual, const Array<float>& x, const Array<float>& routed,
                                  const Array<float>& y, const Array<float>& row_weight, const Array<float>& weight,
                                  float eps, bool fused) {
    Scratch s(*ops_);
    const Tensor sum = s.activations(residual), out = s.activations(shape_of(residual)), change = s.activations(x);
    const Tensor more = routed.size() > 0 ? s.activations(routed) : Tensor{};
    const Tensor shortcut = s.activations(y), scales = s.f32(row_weight), norm = s.f32(weight);
    if (fused) {
      ops_->add_shortcut_rms_norm(out, sum, change, more, shortcut, scales, norm, eps);
    } else {
      ops_->Ops::add_shortcut_rms_norm(out, sum, change, more, shortcut, scales, norm, eps);
    }
    return py::make_tuple(s.floats(sum), s.floats(out));
  }

  // fused, in both: by the device's own op; otherwise by the ops that it replaces. scales: of both weights in e4m3.
  py::tuple linear_pair(const Array<float>& x, const py::array& weight_a, const py::array& weight_b, bool fused,
                        const py::object& scales_a, const py::object& scales_b) {
    Scratch s(*ops_);
    const Tensor inputs = s.activations(x), a = s.activations({x.shape(0), weight_a.shape(0)});
    // As the model's kv_a: the first columns of a wider matrix.
    const Tensor b = s.activations({x.shape(0), weight_b.shape(0) + 8}).slice(1, 0, weight_b.shape(0));
    if (fused) {
      ops_->linear_pair(a, b, inputs, s.weight(weight_a, scales_a), s.weight(weight_b, scales_b));
    } else {
      ops_->Ops::linear_pair(a, b, inputs, s.weight(weight_a, scales_a), s.weight(weight_b, scales_b));
    }
    std::vector<int32_t> all(static_cast<size_t>(x.shape(0)));
    std::iota(all.begin(), all.end(), 0);
    const Tensor rows = s.empty(DType::i32, {x.shape(0)}), packed = s.activations({x.shape(0), weight_b.shape(0)});
    ops_->device().copy_from_host(rows.raw(), all.data(), rows.num_bytes());
    ops_->gather_rows(packed, b, rows);
    return py::make_tuple(s.floats(a), s.floats(packed));
  }

  Array<float> linear_silu_mul(const Array<float>& x, const py::array& gate, const py::array& up, bool fused,
                               const py::object& gate_scales, const py::object& up_scales) {
    Scratch s(*ops_);
    const Weight gate_proj = s.weight(gate, gate_scales), up_proj = s.weight(up, up_scales);
    const Tensor out = s.activations({x.shape(0), gate.shape(0)}), scratch = s.activations({x.shape(0), gate.shape(0)});
    if (fused) {
      ops_->linear_silu_mul(out, scratch, s.activations(x), gate_proj, up_proj);
    } else {
      ops_->Ops::linear_silu_mul(out, scratch, s.activations(x), gate_proj, up_proj);
    }
    return s.floats(out);
  }

  Array<float> silu_mul(const Array<float>& gate, const Array<float>& up) {
    Scratch s(*ops_);
    const Tensor out = s.activations(gate);
    ops_->silu_mul(out, out, s.activations(up));
    return s.floats(out);
  }

  Array<float> gather_rows(const Array<float>& x, const Array<int32_t>& rows) {
    Scratch s(*ops_);
    const Tensor out = s.activations({rows.size(), x.shape(1)});
    ops_->gather_rows(out, s.activations(x), s.i32(rows));
    return s.floats(out);
  }

  Array<float> merge_vocab_parts(const Array<float>& parts, int64_t num_rows) {
    Scratch s(*ops_);
    const Tensor out = s.empty(DType::f32, {num_rows, parts.shape(0) * parts.shape(2)});
    ops_->merge_vocab_parts(out, s.f32(parts));
    return s.floats(out);
  }

  Array<int32_t> select_token_ids(const Array<int32_t>& token_ids, const Array<int32_t>& sampled_ids,
                                  const Array<int32_t>& sources) {
    Scratch s(*ops_);
    const Tensor ids = s.i32(token_ids);
    ops_->select_token_ids(ids, s.i32(sampled_ids), s.i32(sources));
    return s.ints(ids);
  }

  Array<float> rope(const Array<float>& x, const Array<int32_t>& positions, const Array<float>& inv_freq,
                    float factor) {
    Scratch s(*ops_);
    const Tensor t = s.activations(x), cos = s.empty(DType::f32, {x.shape(0), x.shape(2) / 2}),
                 sin = s.empty(DType::f32, {x.shape(0), x.shape(2) / 2});
    ops_->rope_angles(cos, sin, s.i32(positions), s.f32(inv_freq), factor);
    ops_->rope(t, cos, sin);
    return s.floats(t);
  }

  Array<float> embed(const Array<int32_t>& token_ids, const py::array& word, const Array<float>& rows,
                     const py::object& projection, float scale, int64_t first_word) {
    Scratch s(*ops_);
    const Tensor out = s.activations({token_ids.size(), word.shape(1)});
    ops_->embed(out, s.i32(token_ids), s.weight(word), first_word, s.activations(rows),
                projection.is_none() ? Weight{} : s.weight(projection.cast<py::array>()), scale);
    return s.floats(out);
  }

  // Runs steps of chunks over one token lane. Returns (ids [T, tables], rows, lane) after the last step. tables: [rows,
  // dim] each. moduli: the row counts of all tables, of which `tables` are those of this rank (NgramTables); empty:
  // `tables` are all.
  py::tuple ngram_lookup(const std::vector<std::pair<Chunks, size_t>>& steps, const std::vector<py::array>& tables,
                         int64_t vocab_size, int64_t max_order, int64_t splits, int32_t eos_token_id,
                         int64_t num_blocks, std::vector<int64_t> moduli, int64_t first_table, int64_t first_row) {
    Scratch s(*ops_);
    std::vector<Weight> weights;
    std::vector<int64_t> powers;
    for (const py::array& table : tables) weights.push_back(s.weight(table));
    if (moduli.empty())
      for (const Weight& weight : weights) moduli.push_back(weight.out_features);
    for (const int64_t modulus : moduli) append_powers(powers, vocab_size, modulus, max_order);
    const NgramTables ngram{.tables = weights,
                            .first_table = first_table,
                            .first_row = first_row,
                            .moduli = moduli,
                            .powers = powers,
                            .max_order = max_order,
                            .splits = splits,
                            .eos_token_id = eos_token_id};
    const Tensor lane = s.empty(DType::i32, {num_blocks * kBlockSize});
    BatchBuffers buffers(ops_->device(), 512, 64, num_blocks);
    const int64_t num_here = static_cast<int64_t>(tables.size()), num_tables = static_cast<int64_t>(moduli.size());
    Tensor ids, rows;
    for (const auto& [chunks, num_generated] : steps) {
      buffers.stage(chunk_views(chunks, num_generated), 0);
      const ForwardBatch batch = buffers.upload(0);
      ids = s.empty(DType::i32, {batch.num_tokens(), num_tables});
      rows = s.activations({batch.num_tokens(), num_here * (num_here > 0 ? tables[0].shape(1) : 0)});
      ops_->ngram_lookup(ids, rows, lane, batch, ngram);
    }
    return py::make_tuple(s.ints(ids), s.floats(rows), s.ints(lane));
  }

  // Stores kv_a of every chunk, then attends.
  // generated: mla_decode with q [T, heads, kv_lora + rope]; otherwise mla_prefill with q [T, heads, nope + rope], k_up
  // and v_up.
  // q_a: [T, q_lora], normalised with weights of 1 on the way. fused: by the device's own op; otherwise by the ops that
  // it replaces.
  // Returns (out, stored latents of the whole cache as bytes, q_a).
  py::tuple attention(const Chunks& chunks, int64_t num_blocks, const Array<float>& kv_a,
                      const Array<float>& norm_weight, const Array<float>& inv_freq, const std::string& cache_dtype,
                      bool generated, const Array<float>& q, const py::object& k_up, const py::object& v_up,
                      float scale, const Array<float>& q_a, bool fused, const Array<int32_t>& selected) {
    Scratch s(*ops_);
    const int64_t kv_lora = norm_weight.size(), rope = kv_a.shape(1) - kv_lora, num_tokens = kv_a.shape(0);
    const DType dtype = cache_dtype == "fp8" ? DType::f8_e4m3 : cache_dtype == "bf16" ? DType::bf16 : DType::f32;
    const int64_t row = latent_row_size(dtype, kv_lora, rope);
    // The cache has three sub-layers and the ops use the middle one, so its blocks are strided. Slots without a token
    // hold NaN.
    const Tensor cache = s.empty(dtype, {num_blocks, 3 * kBlockSize, row});
    const std::vector<uint8_t> nan(static_cast<size_t>(cache.num_bytes()), 0xff);
    ops_->device().copy_from_host(cache.raw(), nan.data(), cache.num_bytes());
    const Tensor latents = cache.slice(1, kBlockSize, 2 * kBlockSize);

    BatchBuffers buffers(ops_->device(), num_tokens, static_cast<int64_t>(chunks.size()), num_blocks);
    buffers.stage(chunk_views(chunks, generated ? chunks.size() : 0), 0);
    const ForwardBatch batch = buffers.upload(0);
    const Tensor cos = s.empty(DType::f32, {num_tokens, rope / 2}), sin = s.empty(DType::f32, {num_tokens, rope / 2});
    ops_->rope_angles(cos, sin, batch.positions, s.f32(inv_freq), 1);
    const Tensor kv = s.activations(kv_a), kv_norm = s.f32(norm_weight), low_rank = s.activations(q_a);
    const std::vector<float> ones(static_cast<size_t>(q_a.shape(1)), 1);
    const Tensor q_norm = s.empty(DType::f32, {q_a.shape(1)});
    ops_->device().copy_from_host(q_norm.raw(), ones.data(), q_norm.num_bytes());
    if (fused) {
      ops_->mla_norm_store(low_rank, q_norm, latents, kv, kv_norm, 1e-6f, cos, sin, batch);
    } else {
      ops_->Ops::mla_norm_store(low_rank, q_norm, latents, kv, kv_norm, 1e-6f, cos, sin, batch);
    }
    const Tensor queries = s.activations(q), lists = selected.size() > 0 ? s.i32(selected) : Tensor{};
    ops_->plan_decode(batch,
                      {.num_heads = q.shape(1),
                       .kv_lora_rank = kv_lora,
                       .qk_nope_head_dim = 0,
                       .qk_rope_head_dim = rope,
                       .v_head_dim = 0},
                      dtype, lists.empty() ? 0 : lists.size(1));
    Tensor out;
    if (generated) {
      out = s.activations({num_tokens, q.shape(1), kv_lora});
      // mla_decode takes q_latent contiguous or strided. Here both queries are views of one array.
      const Tensor q_latent = queries.slice(2, 0, kv_lora), q_rope = queries.slice(2, kv_lora, kv_lora + rope);
      if (lists.empty()) {
        ops_->mla_decode(out, q_latent, q_rope, latents, batch, scale);
      } else {
        ops_->mla_decode_selected(out, q_latent, q_rope, latents, lists, batch, scale);
      }
    } else {
      const py::array up = v_up.cast<py::array>();
      const Weight k = s.weight(k_up.cast<py::array>()), v = s.weight(up);
      out = s.activations({num_tokens, q.shape(1), up.shape(0) / q.shape(1)});
      if (lists.empty()) {
        ops_->mla_prefill(out, queries, latents, k, v, batch, scale);
      } else {
        const Tensor spare = s.activations({2 * num_tokens, q.shape(1), kv_lora});
        ops_->mla_prefill_selected(out, queries, latents, k, v, lists, spare.first(num_tokens),
                                   spare.slice(0, num_tokens, 2 * num_tokens), batch, scale);
      }
    }
    return py::make_tuple(s.floats(out), s.bytes(cache.raw(), cache.num_bytes()), s.floats(low_rank));
  }

  // The indexer of sparse attention. k [n, dim] are keys of the chunks' histories, row by row; the last of each chunk's
  // are those of its tokens. Returns (selected [T, topk], -1 in rows of tokens that attend to all positions; the whole
  // set of stored keys as bytes).
  py::tuple select_positions(const Chunks& chunks, int64_t num_blocks, size_t num_generated, const Array<float>& k,
                             const Array<float>& norm_weight, const Array<float>& inv_freq, const Array<float>& q,
                             const Array<float>& head_weights, const std::vector<int64_t>& rule, float scale,
                             const std::string& stored) {
    Scratch s(*ops_);
    const int64_t n = k.shape(0), dim = k.shape(1), num_tokens = q.shape(0), half = inv_freq.size();
    const DType dtype = stored == "bf16" ? DType::bf16 : DType::f32;
    const Tensor all = s.empty(dtype, {num_blocks, 3 * kBlockSize, dim});  // the middle one of three sets
    const std::vector<uint8_t> nan(static_cast<size_t>(all.num_bytes()), 0xff);
    ops_->device().copy_from_host(all.raw(), nan.data(), all.num_bytes());
    const Tensor keys = all.slice(1, kBlockSize, 2 * kBlockSize);

    Chunks histories = chunks;
    for (auto& [blocks, start, ids] : histories) {
      ids.resize(static_cast<size_t>(start) + ids.size());
      start = 0;
    }
    BatchBuffers buffers(ops_->device(), n, static_cast<int64_t>(chunks.size()), num_blocks);
    buffers.stage(chunk_views(histories, 0), 0);
    const ForwardBatch history = buffers.upload(0);
    const Tensor cos = s.empty(DType::f32, {n, half}), sin = s.empty(DType::f32, {n, half});
    ops_->rope_angles(cos, sin, history.positions, s.f32(inv_freq), 1);
    ops_->index_store(keys, s.activations(k), s.f32(norm_weight), 1e-6f, cos, sin, history);

    buffers.stage(chunk_views(chunks, num_generated), 0);
    const ForwardBatch batch = buffers.upload(0);
    Array<int32_t> unselected({num_tokens, rule.at(0)});
    std::fill_n(unselected.mutable_data(), unselected.size(), -1);
    const Tensor selected = s.i32(unselected);
    for (int time = 0; time < 2; ++time)  // the second time finds what the first has left
      ops_->select_positions(selected, s.activations(q), s.f32(head_weights), keys, batch,
                             {rule.at(0), rule.at(1), rule.at(2)}, scale);
    return py::make_tuple(s.ints(selected), s.bytes(all.raw(), all.num_bytes()));
  }

  Array<int32_t> extend_selection(const Array<int32_t>& selected, const Array<int32_t>& rows,
                                  const Array<int32_t>& positions) {
    Scratch s(*ops_);
    const Tensor lists = s.i32(selected);
    ops_->extend_selection(lists, s.i32(rows), s.i32(positions));
    return s.ints(lists);
  }

  // Returns (expert_idx, expert_weights, identity_weight, expert_offsets, permuted_tokens, permuted_rows, out).
  py::tuple moe(const Array<float>& x, const Array<float>& classifier, const Array<float>& bias, int64_t topk,
                float scaling_factor, const std::vector<py::array>& gate, const std::vector<py::array>& up,
                const std::vector<py::array>& down, const std::vector<py::object>& scales, int64_t num_real_tokens,
                int64_t first_expert, int64_t n_routed_experts) {
    Scratch s(*ops_);
    const int64_t num_tokens = x.shape(0), num_experts = static_cast<int64_t>(gate.size()), rows = num_tokens * topk;
    const int64_t width = gate.at(0).shape(0), hidden = x.shape(1);
    Routing routing{.expert_idx = s.empty(DType::i32, {num_tokens, topk}),
                    .expert_weights = s.empty(DType::f32, {num_tokens, topk}),
                    .identity_weight = s.empty(DType::f32, {num_tokens}),
                    .expert_offsets = s.empty(DType::i32, {num_experts + 1}),
                    .permuted_tokens = s.empty(DType::i32, {rows}),
                    .permuted_rows = s.empty(DType::i32, {num_tokens, topk}),
                    .expert_list = s.empty(DType::i32, {1 + 3 * num_experts})};
    Array<int32_t> num_real(std::vector<py::ssize_t>{1});
    num_real.mutable_data()[0] = static_cast<int32_t>(num_real_tokens < 0 ? num_tokens : num_real_tokens);
    const Tensor inputs = s.activations(x), out = s.activations({num_tokens, hidden});
    ops_->moe_route(routing, s.empty(DType::f32, {num_tokens, classifier.shape(0)}), inputs, s.router(classifier),
                    s.f32(bias), s.i32(num_real), n_routed_experts < 0 ? num_experts : n_routed_experts, first_expert,
                    scaling_factor);
    std::vector<Weight> gates, ups, downs;
    for (size_t e = 0; e < gate.size(); ++e) {
      const auto scales_of = [&](size_t which) { return scales.empty() ? py::none() : scales[3 * e + which]; };
      gates.push_back(s.weight(gate[e], scales_of(0)));
      ups.push_back(s.weight(up[e], scales_of(1)));
      downs.push_back(s.weight(down[e], scales_of(2)));
    }
    ops_->moe_experts(out, s.activations({rows, width}), s.activations({rows, width}), s.activations({rows, hidden}),
                      inputs, routing, {.gate_proj = gates, .up_proj = ups, .down_proj = downs});
    return py::make_tuple(s.ints(routing.expert_idx), s.floats(routing.expert_weights),
                          s.floats(routing.identity_weight), s.ints(routing.expert_offsets),
                          s.ints(routing.permuted_tokens), s.ints(routing.permuted_rows), s.floats(out));
  }

  // params: a dict of SamplingRow fields for each row; histories: the ids before the draw.
  Array<int32_t> sample(const Array<float>& logits, const std::vector<py::dict>& params,
                        const std::vector<std::vector<int32_t>>& histories) {
    Scratch s(*ops_);
    const SamplingCase c(params, histories);
    const Tensor ids = s.empty(DType::i32, {static_cast<int64_t>(params.size())});
    ops_->set_sampling_rows(c.rows);
    ops_->sample(ids, s.f32(logits), on_device(s, c.lane_tensor()), on_device(s, c.table_tensor()));
    return s.ints(ids);
  }

  // A recording of sample() for as many rows as there are histories, launched for each of `params`, which have as many
  // rows or fewer. Returns the ids of each launch, where 77 is an id that no row has written, and the recording's
  // nodes.
  py::tuple sample_recorded(const Array<float>& logits, const std::vector<std::vector<py::dict>>& params,
                            const std::vector<std::vector<int32_t>>& histories) {
    Scratch s(*ops_);
    Device& device = ops_->device();
    std::vector<SamplingCase> cases;
    for (const std::vector<py::dict>& rows : params) cases.emplace_back(rows, histories);
    const SamplingCase all(std::vector<py::dict>(histories.size()), histories);
    const Tensor ids = s.empty(DType::i32, {static_cast<int64_t>(histories.size())}), values = s.f32(logits),
                 lane = on_device(s, all.lane_tensor()), tables = on_device(s, all.table_tensor());
    const std::vector<int32_t> unwritten(histories.size(), 77);
    py::list found;
    int64_t nodes = 0;
    std::unique_ptr<Recording> recording;
    device.wait(device.submit([&] {
      ops_->set_sampling_rows({});
      recording = device.record([&] { ops_->sample(ids, values, lane, tables); });
    }));
    for (const SamplingCase& c : cases) {
      device.copy_from_host(ids.raw(), unwritten.data(), ids.num_bytes());
      device.wait(device.submit([&] {
        ops_->set_sampling_rows(c.rows);
        recording->launch();
      }));
      nodes = recording->num_nodes();
      found.append(s.ints(ids));
    }
    return py::make_tuple(found, nodes);
  }

  py::tuple token_logprobs(const Array<float>& logits, const Array<int32_t>& token_ids, int64_t top) {
    Scratch s(*ops_);
    const int64_t rows = logits.shape(0);
    const Tensor logprobs = s.empty(DType::f32, {rows, 1 + top}), ids = s.empty(DType::i32, {rows, 1 + top}),
                 ranks = s.empty(DType::i32, {rows});
    ops_->token_logprobs(logprobs, ids, ranks, s.f32(logits), s.i32(token_ids));
    return py::make_tuple(s.floats(logprobs), s.ints(ids), s.ints(ranks));
  }

 private:
  Tensor on_device(Scratch& s, const Tensor& host) {
    std::vector<int64_t> shape;
    for (int d = 0; d < host.ndim(); ++d) shape.push_back(host.size(d));
    const Tensor out = s.empty(host.dtype(), shape);
    ops_->device().copy_from_host(out.raw(), host.raw(), host.num_bytes());
    return out;
  }

  std::unique_ptr<Ops> ops_;
};

}  // namespace

void register_device_ops(py::module_& testing) {
  py::class_<DeviceOps>(testing, "DeviceOps")
      .def(py::init<const std::string&>(), py::arg("device"))
      .def("activation_dtype", &DeviceOps::activation_dtype)
      .def("linear", &DeviceOps::linear, py::arg("x"), py::arg("weight"), py::arg("scales") = py::none(),
           py::arg("f32_out") = false)
      .def("linear_first_rows", &DeviceOps::linear_first_rows, py::arg("x"), py::arg("weight"), py::arg("scales"),
           py::arg("format"), py::arg("out_features"), py::arg("rows"))
      .def("linear_packed", &DeviceOps::linear_packed, py::arg("x"), py::arg("packed"), py::arg("format"),
           py::arg("out_features"), py::arg("f32_out") = false)
      .def("packed_rows", &DeviceOps::packed_rows)
      .def("quantized", &DeviceOps::quantized)
      .def("set_generated", &DeviceOps::set_generated)
      .def("linear_per_head", &DeviceOps::linear_per_head)
      .def("rms_norm", &DeviceOps::rms_norm)
      .def("add_rms_norm", &DeviceOps::add_rms_norm)
      .def("add", &DeviceOps::add)
      .def("add_scaled_rows", &DeviceOps::add_scaled_rows)
      .def("add_shortcut_rms_norm", &DeviceOps::add_shortcut_rms_norm)
      .def("linear_pair", &DeviceOps::linear_pair, py::arg("x"), py::arg("weight_a"), py::arg("weight_b"),
           py::arg("fused") = true, py::arg("scales_a") = py::none(), py::arg("scales_b") = py::none())
      .def("linear_silu_mul", &DeviceOps::linear_silu_mul, py::arg("x"), py::arg("gate"), py::arg("up"),
           py::arg("fused") = true, py::arg("gate_scales") = py::none(), py::arg("up_scales") = py::none())
      .def("silu_mul", &DeviceOps::silu_mul)
      .def("gather_rows", &DeviceOps::gather_rows)
      .def("merge_vocab_parts", &DeviceOps::merge_vocab_parts)
      .def("select_token_ids", &DeviceOps::select_token_ids)
      .def("rope", &DeviceOps::rope)
      .def("embed", &DeviceOps::embed, py::arg("token_ids"), py::arg("word"), py::arg("rows"), py::arg("projection"),
           py::arg("scale"), py::arg("first_word") = 0)
      .def("ngram_lookup", &DeviceOps::ngram_lookup, py::arg("steps"), py::arg("tables"), py::arg("vocab_size"),
           py::arg("max_order"), py::arg("splits"), py::arg("eos_token_id"), py::arg("num_blocks"),
           py::arg("moduli") = std::vector<int64_t>{}, py::arg("first_table") = 0, py::arg("first_row") = 0)
      .def("attention", &DeviceOps::attention, py::arg("chunks"), py::arg("num_blocks"), py::arg("kv_a"),
           py::arg("norm_weight"), py::arg("inv_freq"), py::arg("cache_dtype"), py::arg("generated"), py::arg("q"),
           py::arg("k_up") = py::none(), py::arg("v_up") = py::none(), py::arg("scale") = 0.3f, py::arg("q_a"),
           py::arg("fused") = true, py::arg("selected") = Array<int32_t>(0))
      .def("select_positions", &DeviceOps::select_positions, py::arg("chunks"), py::arg("num_blocks"),
           py::arg("num_generated"), py::arg("k"), py::arg("norm_weight"), py::arg("inv_freq"), py::arg("q"),
           py::arg("head_weights"), py::arg("rule"), py::arg("scale"), py::arg("stored"))
      .def("extend_selection", &DeviceOps::extend_selection)
      .def("moe", &DeviceOps::moe, py::arg("x"), py::arg("classifier"), py::arg("bias"), py::arg("topk"),
           py::arg("scaling_factor"), py::arg("gate"), py::arg("up"), py::arg("down"),
           py::arg("scales") = std::vector<py::object>{}, py::arg("num_real_tokens") = -1, py::arg("first_expert") = 0,
           py::arg("n_routed_experts") = -1)
      .def("sample", &DeviceOps::sample)
      .def("sample_recorded", &DeviceOps::sample_recorded)
      .def("token_logprobs", &DeviceOps::token_logprobs);
}

}  // namespace longcat
