#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>

#include "io/file_reader.h"
#include "model/expected_tensors.h"
#include "model/stored_values.h"
#include "model/weight_slice.h"
#include "ops/packed.h"

namespace longcat {

namespace {

class WeightBuilder {
 public:
  WeightBuilder(const Checkpoint& checkpoint, const ModelConfig& config, DType dtype, Ops& ops,
                Placement table_placement, Fp8OnLoad fp8, ModelWeights& weights, const LoadProgress& progress)
      : checkpoint_(checkpoint),
        dtype_(dtype),
        ops_(ops),
        table_placement_(table_placement),
        fp8_(fp8),
        weights_(weights),
        progress_(progress) {
    for (ExpectedTensor& tensor : expected_tensors(config)) shapes_[tensor.name] = std::move(tensor.shape);
    for (ExpectedTensor& tensor : expected_mtp_tensors(config)) shapes_[tensor.name] = std::move(tensor.shape);
    for (const auto& [name, tensor] : checkpoint.tensors()) total_bytes_ += static_cast<int64_t>(tensor.num_bytes);
  }

  // Sets the progress to 100 %, because some tensors may be unread (an unused MTP layer).
  void finish() const {
    if (progress_) progress_(total_bytes_, total_bytes_);
  }

  // Reads a norm or bias as f32, times `factor`.
  Tensor vector(const std::string& name, double factor = 1) {
    const StoredTensor& stored = get(name);
    const int64_t n = stored.shape[0];
    std::vector<float> values(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i)
      values[static_cast<size_t>(i)] = static_cast<float>(element(stored.data, stored.dtype, i) * factor);
    const Tensor out = weights_.storage.emplace_back(ops_.device(), n * 4).tensor(DType::f32, {n});
    ops_.device().copy_from_host(out.raw(), values.data(), n * 4);
    return out;
  }

  // A matrix, or a range of its rows or columns. It keeps its stored format where a kernel reads that, and is converted
  // otherwise.
  Weight matrix(const std::string& name) { return matrix(name, all_rows(name), all_cols(name)); }
  using Prepare = Weight (Ops::*)(const Weight& logical, Buffer& storage);

  // A matrix of the core, all of it or a range: it may become fp8.
  Weight whole(const std::string& name) { return core(name, all_rows(name), all_cols(name)); }
  Weight rows_of(const std::string& name, Range rows) { return core(name, rows, all_cols(name)); }
  Weight cols_of(const std::string& name, Range cols) { return core(name, all_rows(name), cols); }
  Weight core(const std::string& name, Range rows, Range cols) {
    return fp8_ == Fp8OnLoad::all ? in_fp8(name, rows, cols) : matrix(name, rows, cols);
  }
  // The same of a matrix of which single rows are read.
  Weight looked_up(const std::string& name, Range rows) {
    return matrix(name, rows, all_cols(name), &Ops::prepare_lookup);
  }

  Weight matrix(const std::string& name, Range rows, Range cols, Prepare prepare = &Ops::prepare) {
    if (const std::optional<Weight> weight = packed(name)) return prepared_slice(*weight, rows, cols, name);
    const StoredTensor& stored = get(name);
    if (stored.dtype == DType::f16 || (stored.dtype == DType::f32 && dtype_ == DType::bf16))
      return rounded(
          rows.size(), cols.size(),
          [&](int64_t r, int64_t c) {
            return element(stored.data, stored.dtype, (rows.begin + r) * stored.shape[1] + cols.begin + c);
          },
          false, prepare);
    return prepared_slice(view(name, stored), rows, cols, name);
  }

  // num_rows: the most frequent rows, which are the first; 0: all rows.
  Weight draft_head(const Weight& head, int64_t num_rows) {
    const auto kept = [&](auto make) {
      Buffer storage;
      const Weight weight = make(storage);
      if (storage.data()) weights_.storage.push_back(std::move(storage));
      return weight;
    };
    const int64_t whole_blocks = (num_rows + kFp8Block - 1) / kFp8Block * kFp8Block;
    Weight rows = head;
    if (num_rows > 0 && whole_blocks < head.out_features)
      rows = kept([&](Buffer& storage) { return ops_.first_rows(head, whole_blocks, storage); });
    return kept([&](Buffer& storage) { return ops_.draft_head(rows, storage); });
  }

  // Like whole(). An fp8 matrix gets additional rows of zeros where linear() is faster with them.
  Weight matrix_of_whole_blocks(const std::string& name) {
    const int64_t multiple = ops_.fp8_row_multiple();
    const StoredTensor* stored = checkpoint_.find(name);
    if (!stored || stored->shape[0] % multiple == 0) return whole(name);
    LC_CHECK(multiple == kFp8Block);  // whole blocks, so no scale is added
    const int64_t rows = (stored->shape[0] + multiple - 1) / multiple * multiple;
    if (stored->dtype != DType::f8_e4m3)
      return fp8_ == Fp8OnLoad::all ? in_fp8(name, all_rows(name), all_cols(name), rows) : matrix(name);
    std::unique_ptr<std::byte[]> plane;
    return prepared(with_zeros(view(name, get(name)), rows, plane));
  }

  Weight expert_rows(const std::string& name, Range rows) { return expert(name, rows, all_cols(name)); }
  Weight expert_cols(const std::string& name, Range cols) { return expert(name, all_rows(name), cols); }
  Weight expert(const std::string& name, Range rows, Range cols) {
    return fp8_ == Fp8OnLoad::none ? matrix(name, rows, cols) : in_fp8(name, rows, cols);
  }

  // Makes fp8 blocks, unless the matrix is stored in fp8 or packed. num_rows: with rows of zeros; 0: without.
  Weight in_fp8(const std::string& name, Range rows, Range cols, int64_t num_rows = 0) {
    const StoredTensor* stored = checkpoint_.find(name);
    if (!stored || stored->dtype == DType::f8_e4m3) return matrix(name, rows, cols);
    const Weight whole = view(name, get(name));
    Weight logical = whole;
    std::unique_ptr<std::byte[]> columns, plane;
    std::vector<float> widened;
    if (stored->dtype == DType::f16) {
      for (int64_t r = rows.begin; r < rows.end; ++r)
        for (int64_t c = cols.begin; c < cols.end; ++c)
          widened.push_back(element(stored->data, stored->dtype, r * whole.in_features + c));
      logical = {.out_features = rows.size(), .in_features = cols.size(), .data = widened.data()};
    } else {
      logical = slice_of(whole, rows, cols, name, columns);
    }
    if (num_rows > 0) logical = with_zeros(logical, num_rows, plane);
    Buffer storage;
    const Weight weight = ops_.quantize_fp8(logical, storage);
    weights_.storage.push_back(std::move(storage));
    MappedFile::forget({static_cast<const std::byte*>(stored->data), static_cast<size_t>(stored->num_bytes)});
    return weight;
  }

  // An N-gram table, which is read by single rows. f32 tables stay f32 whatever the working dtype. For a table on disk,
  // only pages with wanted rows are read.
  Weight table(const std::string& name, Range rows) {
    const Weight weight = table_as_stored(name, rows);
    if (weight.placement == Placement::disk) expect_random_reads(weight.data, weight.num_bytes());
    return weight;
  }

  Weight matrix_f32(const std::string& name, Prepare prepare = &Ops::prepare) {
    const StoredTensor& stored = get(name);
    const int64_t rows = stored.shape[0], cols = stored.shape[1];
    return converted(
        WeightFormat::f32, rows, cols,
        [&](int64_t r, int64_t c) { return element(stored.data, stored.dtype, r * cols + c); }, prepare);
  }

  // Per head, kv_b_proj holds qk_nope_head_dim rows of W_uk, then v_head_dim rows of W_uv.
  void split_kv_b(AttentionWeights& attention, const std::string& name, const ModelConfig& c, Range heads) {
    const StoredTensor& stored = get(name);
    const StoredTensor* scales = checkpoint_.find(name + "_scale_inv");
    const int64_t latent = c.kv_lora_rank, nope = c.qk_nope_head_dim, v = c.v_head_dim;
    const int64_t first_row = heads.begin * (nope + v);
    const auto value = [&](int64_t row, int64_t col) { return stored_value(stored, scales, first_row + row, col); };
    const auto k_row = [&](int64_t r, int64_t col) { return value(r / latent * (nope + v) + col, r % latent); };
    const auto v_row = [&](int64_t r, int64_t col) { return value(r / v * (nope + v) + nope + r % v, col); };
    const bool exact_in_bf16 = stored.dtype == DType::bf16;
    attention.k_up = rounded(heads.size() * latent, nope, k_row, exact_in_bf16);
    attention.v_up = rounded(heads.size() * v, latent, v_row, exact_in_bf16);
  }

  // The post_projs [hidden, table_dim] side by side, as one matrix [hidden, tables * table_dim].
  Weight side_by_side(const std::vector<std::string>& names) {
    std::vector<const StoredTensor*> parts;
    bool exact_in_bf16 = true;
    for (const std::string& name : names) {
      parts.push_back(&get(name));
      exact_in_bf16 = exact_in_bf16 && parts.back()->dtype == DType::bf16;
    }
    const int64_t rows = parts[0]->shape[0], width = parts[0]->shape[1],
                  cols = width * static_cast<int64_t>(parts.size());
    return rounded(
        rows, cols,
        [&](int64_t r, int64_t c) {
          const StoredTensor& part = *parts[static_cast<size_t>(c / width)];
          return element(part.data, part.dtype, r * width + c % width);
        },
        exact_in_bf16);
  }

 private:
  Weight table_as_stored(const std::string& name, Range rows) {
    const std::optional<Weight> packed_table = packed_view(name);
    if (!packed_table && find(name).dtype == DType::f16) return looked_up(name, rows);
    const StoredTensor& stored = find(packed_table ? packed_name(name, packed_table->format) : name);
    const MappedFile& shard = checkpoint_.shards()[static_cast<size_t>(stored.shard)];
    std::optional<FileReader> file;  // opened by the first read, because not every device copies its tables
    std::unique_ptr<std::byte[]> columns;
    const Weight whole = packed_table ? *packed_table : view(name, stored);
    const Weight logical = slice_of(whole, rows, all_cols(name), name, columns);
    const int64_t offset = static_cast<const std::byte*>(logical.data) - shard.bytes().data();
    Buffer storage;
    HostBuffer host_storage;
    int64_t left = static_cast<int64_t>(stored.num_bytes);
    const Weight weight = ops_.prepare_table(
        logical, table_placement_,
        [&](void* to, int64_t begin, int64_t bytes) {
          if (!file) file.emplace(shard.path());
          file->read(to, offset + begin, bytes);
          advance(bytes);
          left -= bytes;
        },
        storage, host_storage);
    advance(left);  // bytes that are read later, on demand
    if (storage.data()) weights_.storage.push_back(std::move(storage));
    if (host_storage.data()) weights_.host_storage.push_back(std::move(host_storage));
    return weight;
  }
  Range all_rows(const std::string& name) const { return {0, shapes_.at(name)[0]}; }
  Range all_cols(const std::string& name) const { return {0, shapes_.at(name)[1]}; }

  const StoredTensor& find(const std::string& name) const {
    const StoredTensor* tensor = checkpoint_.find(name);
    LC_CHECK(tensor, name);
    return *tensor;
  }

  const StoredTensor& get(const std::string& name) {
    const StoredTensor& tensor = find(name);
    advance(static_cast<int64_t>(tensor.num_bytes));
    return tensor;
  }

  void advance(int64_t bytes) {
    done_bytes_ += bytes;
    if (progress_) progress_(std::min(done_bytes_, total_bytes_), total_bytes_);
  }

  Weight view(const std::string& name, const StoredTensor& stored) {
    Weight weight{.out_features = stored.shape[0],
                  .in_features = stored.shape[1],
                  .data = stored.data,
                  .placement = Placement::disk};
    switch (stored.dtype) {
      case DType::bf16:
        weight.format = WeightFormat::bf16;
        break;
      case DType::f8_e4m3:
        weight.format = WeightFormat::fp8_block;
        weight.scales = reinterpret_cast<const float*>(get(name + "_scale_inv").data);
        break;
      default:
        weight.format = WeightFormat::f32;
    }
    return weight;
  }

  // The matrix in a packed format of `longcat convert`, if the checkpoint has one.
  std::optional<Weight> packed(const std::string& name) {
    const std::optional<Weight> weight = packed_view(name);
    if (weight) advance(weight->num_bytes());
    return weight;
  }
  std::optional<Weight> packed_view(const std::string& name) const {
    if (checkpoint_.find(name)) return std::nullopt;
    const std::vector<int64_t>& shape = shapes_.at(name);
    for (const WeightFormat format : kAllWeightFormats)
      if (is_packed(format) && checkpoint_.find(packed_name(name, format)))
        return Weight{.format = format,
                      .out_features = shape[0],
                      .in_features = shape[1],
                      .data = find(packed_name(name, format)).data,
                      .placement = Placement::disk};
    return std::nullopt;
  }

  // `logical` with rows of zeros behind it, num_rows in all. Scales stay as they are.
  static Weight with_zeros(Weight logical, int64_t num_rows, std::unique_ptr<std::byte[]>& plane) {
    const int64_t element = logical.format == WeightFormat::f32 ? 4 : logical.format == WeightFormat::bf16 ? 2 : 1;
    const int64_t row_bytes = logical.in_features * element;
    plane = std::make_unique<std::byte[]>(static_cast<size_t>(num_rows * row_bytes));
    std::memcpy(plane.get(), logical.data, static_cast<size_t>(logical.out_features * row_bytes));
    logical.out_features = num_rows;
    logical.data = plane.get();
    return logical;
  }

  Weight prepared_slice(const Weight& whole, Range rows, Range cols, const std::string& name) {
    std::unique_ptr<std::byte[]> columns;
    const Weight weight = prepared(slice_of(whole, rows, cols, name, columns));
    if (columns)
      MappedFile::forget({static_cast<const std::byte*>(whole.data), static_cast<size_t>(whole.num_bytes())});
    if (weight.data == columns.get()) weights_.converted.push_back(std::move(columns));
    return weight;
  }

  Weight prepared(const Weight& logical, Prepare prepare = &Ops::prepare) {
    Buffer storage;
    const Weight weight = (ops_.*prepare)(logical, storage);
    if (storage.data()) weights_.storage.push_back(std::move(storage));
    return weight;
  }

  // Makes a weight whose element (r, c) is value(r, c), in the working dtype. A matrix that is exact in bf16 is stored
  // as bf16 even when the working dtype is f32.
  template <class Value>
  Weight rounded(int64_t rows, int64_t cols, Value&& value, bool exact_in_bf16 = false,
                 Prepare prepare = &Ops::prepare) {
    const bool narrow = exact_in_bf16 || dtype_ == DType::bf16;
    return converted(narrow ? WeightFormat::bf16 : WeightFormat::f32, rows, cols, value, prepare);
  }

  // Makes a weight whose element (r, c) is value(r, c), as f32 or bf16 in new memory. That memory is kept when the
  // backend uses it directly.
  template <class Value>
  Weight converted(WeightFormat format, int64_t rows, int64_t cols, Value&& value, Prepare prepare = &Ops::prepare) {
    const int64_t element_bytes = format == WeightFormat::bf16 ? 2 : 4;
    std::unique_ptr<std::byte[]> plane(new std::byte[static_cast<size_t>(rows * cols * element_bytes)]);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        if (format == WeightFormat::bf16) {
          reinterpret_cast<bf16*>(plane.get())[r * cols + c] = to_bf16(value(r, c));
        } else {
          reinterpret_cast<float*>(plane.get())[r * cols + c] = value(r, c);
        }
      }
    const Weight weight =
        prepared({.format = format, .out_features = rows, .in_features = cols, .data = plane.get()}, prepare);
    if (weight.data == plane.get()) weights_.converted.push_back(std::move(plane));
    return weight;
  }

  const Checkpoint& checkpoint_;
  std::map<std::string, std::vector<int64_t>> shapes_;  // of the whole tensors, packed or not
  DType dtype_;
  Ops& ops_;
  Placement table_placement_;
  Fp8OnLoad fp8_;
  ModelWeights& weights_;
  const LoadProgress& progress_;
  int64_t done_bytes_ = 0, total_bytes_ = 0;
};

NgramWeights load_ngram(WeightBuilder& builder, const ModelConfig& config, const Shard& shard) {
  NgramWeights ngram;
  if (!config.ngram) return ngram;
  const NgramConfig& c = *config.ngram;
  std::vector<std::string> projections;
  for (int64_t t = 0; t < c.num_tables(); ++t) {
    const int64_t i = t - shard.first_table;
    if (0 <= i && i < static_cast<int64_t>(shard.tables.size())) {
      const bool lite = !config.sparse;
      ngram.tables.push_back(
          builder.table(str_cat(lite ? "model.ngram_embeddings.embedders." : "model.oe_embed_tokens", t, ".weight"),
                        shard.tables[static_cast<size_t>(i)]));
      projections.push_back(str_cat(lite ? "model.ngram_embeddings.post_projs." : "model.oe_embed_proj", t, ".weight"));
    }
    const int64_t modulus = c.rows_of(t);
    // Ids are i32, and the unreduced sum x + sum_d s_d * power_d must fit in i64.
    LC_CHECK(modulus <= std::numeric_limits<int32_t>::max() &&
             modulus <= std::numeric_limits<int64_t>::max() / (config.vocab_size * c.emb_neighbor_num));
    ngram.moduli.push_back(modulus);
    append_powers(ngram.powers, config.vocab_size, modulus, c.emb_neighbor_num);
  }
  if (!projections.empty()) ngram.projection = builder.side_by_side(projections);
  return ngram;
}

Range scaled(Range range, int64_t factor) { return {range.begin * factor, range.end * factor}; }

IndexerWeights load_indexer(WeightBuilder& builder, const std::string& prefix) {
  return {.q_proj = builder.matrix(prefix + "wq_b.weight"),
          .k_proj = builder.matrix(prefix + "wk.weight"),
          .k_norm = builder.vector(prefix + "k_norm.weight"),
          .weights_proj = builder.matrix_f32(prefix + "weights_proj.weight", &Ops::prepare_router)};
}

// `prefix` ends with a dot.
AttentionWeights load_attention(WeightBuilder& builder, const ModelConfig& c, const Shard& shard,
                                const std::string& prefix, bool has_indexer) {
  const double hidden = static_cast<double>(c.hidden_size);
  const double q_scale = c.mla_scale_q_lora ? std::sqrt(hidden / static_cast<double>(c.q_lora_rank)) : 1;
  const double kv_scale = c.mla_scale_kv_lora ? std::sqrt(hidden / static_cast<double>(c.kv_lora_rank)) : 1;
  AttentionWeights attention;
  attention.q_a_proj = builder.whole(prefix + "q_a_proj.weight");
  attention.q_a_norm = builder.vector(prefix + "q_a_layernorm.weight", q_scale);
  attention.q_b_proj = builder.rows_of(prefix + "q_b_proj.weight", scaled(shard.heads, c.qk_head_dim()));
  attention.kv_a_proj = builder.matrix_of_whole_blocks(prefix + "kv_a_proj_with_mqa.weight");
  attention.kv_a_norm = builder.vector(prefix + "kv_a_layernorm.weight", kv_scale);
  builder.split_kv_b(attention, prefix + "kv_b_proj.weight", c, shard.heads);
  attention.o_proj = builder.cols_of(prefix + "o_proj.weight", scaled(shard.heads, c.v_head_dim));
  if (has_indexer) attention.indexer = load_indexer(builder, prefix + "indexer.");
  return attention;
}

FfnWeights load_ffn(WeightBuilder& builder, const Shard& shard, const std::string& prefix) {
  return {builder.rows_of(prefix + "gate_proj.weight", shard.ffn),
          builder.rows_of(prefix + "up_proj.weight", shard.ffn),
          builder.cols_of(prefix + "down_proj.weight", shard.ffn)};
}

LayerWeights load_layer(WeightBuilder& builder, const ModelConfig& c, const Shard& shard, int64_t layer_idx) {
  LayerWeights layer;
  const std::string prefix = str_cat("model.layers.", layer_idx, ".");
  for (int i = 0; i < 2; ++i) {
    layer.input_norm[i] = builder.vector(str_cat(prefix, "input_layernorm.", i, ".weight"));
    layer.post_attention_norm[i] = builder.vector(str_cat(prefix, "post_attention_layernorm.", i, ".weight"));
    const bool is_owner = c.sparse && c.sparse->is_owner[static_cast<size_t>(2 * layer_idx + i)];
    layer.attention[i] = load_attention(builder, c, shard, str_cat(prefix, "self_attn.", i, "."), is_owner);
    if (i == 0 || shard.adds_ffn()) layer.ffn[i] = load_ffn(builder, shard, str_cat(prefix, "mlps.", i, "."));
  }
  layer.moe.classifier = builder.matrix_f32(prefix + "mlp.router.classifier.weight", &Ops::prepare_router);
  layer.moe.e_score_correction_bias = builder.vector(prefix + "mlp.router.e_score_correction_bias");
  for (int64_t e = shard.experts.begin; e < shard.experts.end; ++e) {
    const std::string expert = str_cat(prefix, "mlp.experts.", e, ".");
    layer.moe.gate_proj.push_back(builder.expert_rows(expert + "gate_proj.weight", shard.expert_ffn));
    layer.moe.up_proj.push_back(builder.expert_rows(expert + "up_proj.weight", shard.expert_ffn));
    layer.moe.down_proj.push_back(builder.expert_cols(expert + "down_proj.weight", shard.expert_ffn));
  }
  return layer;
}

MtpWeights load_mtp(WeightBuilder& builder, const ModelConfig& c, const Shard& shard, const Weight& word_embedding) {
  const std::string layer = "model.mtp.layers.0.", eh_proj = layer + "eh_proj.weight";
  const Range all_rows{0, c.hidden_size};
  return {.word_embedding = c.mtp_shares_embed_tokens ? word_embedding
                                                      : builder.looked_up("model.mtp.embed_tokens.weight", shard.vocab),
          .word_norm = builder.vector(layer + "enorm.m.weight"),
          .hidden_norm = builder.vector(layer + "hnorm.m.weight"),
          .word_proj = builder.core(eh_proj, all_rows, {0, c.hidden_size}),
          .hidden_proj = builder.core(eh_proj, all_rows, {c.hidden_size, 2 * c.hidden_size}),
          .input_norm = builder.vector(layer + "input_layernorm.weight"),
          .post_attention_norm = builder.vector(layer + "post_attention_layernorm.weight"),
          .attention = load_attention(builder, c, shard, layer + "self_attn.", c.sparse.has_value()),
          .ffn = load_ffn(builder, shard, layer + "transformer_layer.mlp."),
          .final_norm = builder.vector("model.mtp.norm.weight"),
          .head = {}};
}

int64_t bytes_of(const AttentionWeights& a) {
  int64_t total = a.q_a_norm.num_bytes() + a.kv_a_norm.num_bytes();
  for (const Weight* weight : {&a.q_a_proj, &a.q_b_proj, &a.kv_a_proj, &a.k_up, &a.v_up, &a.o_proj})
    total += weight->num_bytes();
  if (a.indexer)
    total += a.indexer->q_proj.num_bytes() + a.indexer->k_proj.num_bytes() + a.indexer->k_norm.num_bytes() +
             a.indexer->weights_proj.num_bytes();
  return total;
}

int64_t bytes_of(const FfnWeights& f) {
  return f.gate_proj.num_bytes() + f.up_proj.num_bytes() + f.down_proj.num_bytes();
}

int64_t bytes_of(const MtpWeights& mtp) {
  int64_t total = bytes_of(mtp.attention) + bytes_of(mtp.ffn);
  for (const Weight* weight : {&mtp.word_embedding, &mtp.word_proj, &mtp.hidden_proj}) total += weight->num_bytes();
  for (const Tensor& norm : {mtp.word_norm, mtp.hidden_norm, mtp.input_norm, mtp.post_attention_norm, mtp.final_norm})
    total += norm.num_bytes();
  return total;
}

}  // namespace

void append_powers(std::vector<int64_t>& powers, int64_t vocab_size, int64_t modulus, int64_t max_order) {
  int64_t power = 1;
  for (int64_t d = 1; d < max_order; ++d) powers.push_back(power = power * (vocab_size % modulus) % modulus);
}

int64_t ModelWeights::num_bytes() const {
  int64_t total = word_embedding.num_bytes() + ngram.projection.num_bytes() + final_norm.num_bytes();
  if (lm_head.data != word_embedding.data) total += lm_head.num_bytes();
  total += table_bytes();
  if (mtp) total += bytes_of(*mtp);
  if (mtp && mtp->word_embedding.data == word_embedding.data) total -= word_embedding.num_bytes();
  if (mtp && mtp->head.data != lm_head.data) total += mtp->head.num_bytes();
  for (const LayerWeights& layer : layers) {
    for (int i = 0; i < 2; ++i) {
      total += bytes_of(layer.attention[i]) + bytes_of(layer.ffn[i]);
      total += layer.input_norm[i].num_bytes() + layer.post_attention_norm[i].num_bytes();
    }
    total += layer.moe.classifier.num_bytes() + layer.moe.e_score_correction_bias.num_bytes();
    for (const auto* experts : {&layer.moe.gate_proj, &layer.moe.up_proj, &layer.moe.down_proj})
      for (const Weight& weight : *experts) total += weight.num_bytes();
  }
  return total;
}

int64_t ModelWeights::table_bytes() const {
  int64_t total = 0;
  for (const Weight& table : ngram.tables) total += table.num_bytes();
  return total;
}

ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const Shard& shard, DType dtype,
                          Ops& ops, Placement table_placement, Fp8OnLoad fp8, bool with_mtp,
                          const LoadProgress& progress, int64_t draft_vocab) {
  LC_CHECK(dtype == DType::f32 || dtype == DType::bf16);
  ModelWeights weights;
  weights.warnings = check_tensors(checkpoint, config, with_mtp);
  WeightBuilder builder(checkpoint, config, dtype, ops, table_placement, fp8, weights, progress);
  weights.word_embedding = builder.looked_up("model.embed_tokens.weight", shard.vocab);
  weights.ngram = load_ngram(builder, config, shard);
  for (int64_t l = 0; l < config.num_layers; ++l) weights.layers.push_back(load_layer(builder, config, shard, l));
  weights.final_norm = builder.vector("model.norm.weight");
  weights.lm_head =
      config.tie_word_embeddings ? weights.word_embedding : builder.rows_of("lm_head.weight", shard.vocab);
  if (with_mtp) {
    weights.mtp = load_mtp(builder, config, shard, weights.word_embedding);
    weights.mtp->head = builder.draft_head(weights.lm_head, draft_vocab);
  }
  builder.finish();
  return weights;
}

}  // namespace longcat
