// The CPU model for tests: they pass explicit batches and read the stored latents.
#include <algorithm>
#include <cstring>
#include <map>

#include "bindings/bindings.h"
#include "cpu/attention/index_scores.h"
#include "cpu/attention/latents.h"
#include "engine/batch_buffers.h"
#include "engine/load_model.h"
#include "tests/native/arrays.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

// The caller owns the block tables.
class TestModel {
 public:
  TestModel(const std::string& folder, const std::string& dtype, int num_threads, int64_t max_tokens,
            int64_t num_blocks, const std::string& kv_cache_dtype, const std::string& index_cache_dtype)
      : options_{.dtype = dtype,
                 .kv_cache_dtype = kv_cache_dtype,
                 .index_cache_dtype = index_cache_dtype,
                 .max_num_batched_tokens = max_tokens,
                 .num_threads = num_threads},
        loaded_(load_model(folder, options_)),
        cache_(loaded_.ops->device(), loaded_.config, num_blocks, {loaded_.kv_cache_dtype, loaded_.index_cache_dtype}),
        buffers_(loaded_.ops->device(), max_tokens, max_tokens, num_blocks) {}

  // chunks: (block table, position of the first token, token ids) for each sequence. The first num_generated chunks
  // hold generated tokens. num_rows: rows with padding. Returns the logits of every token.
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
    loaded_.model->logits(out, loaded_.model->forward(batch, cache_), all);
    return logits;
  }

  // Returns whether experts are read from the disk.
  bool fit_into(int64_t available_bytes) {
    loaded_.model->fit_into(available_bytes);
    return loaded_.model->reads_experts_from_disk();
  }

  // Returns the rows of the N-gram tables that the last forward pass looked up.
  Array<int32_t> last_ngram_ids() {
    const Tensor ids = loaded_.model->last_ngram_ids();
    if (ids.empty()) return Array<int32_t>(0);
    Array<int32_t> out({ids.size(0), ids.size(1)});
    std::copy_n(ids.data<int32_t>(), ids.numel(), out.mutable_data());
    return out;
  }

  // Returns the stored latents of the first num_tokens positions of a sequence, as attention reads them: [T, kv_lora +
  // rope].
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

  // Returns the stored index keys of the first num_tokens positions: [T, index_head_dim].
  Array<float> index_keys(int64_t index_layer, const std::vector<int32_t>& blocks, int64_t num_tokens) {
    const Tensor keys = cache_.index_keys(index_layer);
    const int64_t dim = loaded_.config.sparse->index_head_dim;
    Array<float> out({num_tokens, dim});
    std::vector<float> scratch(static_cast<size_t>(dim));
    for (int64_t p = 0; p < num_tokens; ++p)
      std::copy_n(cpu::read_index_keys(scratch.data(), keys, blocks.data(), p, p + 1, dim), dim, out.mutable_data(p));
    return out;
  }

  // Returns what the indexer of the last layer computed for the tokens of the last step: {"selected": [T, topk],
  // "queries": [T, heads, dim], "weights": [T, heads]}.
  py::dict last_selection() {
    const Activations& a = loaded_.model->activations();
    const int64_t T = a.index_k.size(0), topk = loaded_.config.sparse->index_topk;
    const auto floats = [](Tensor x) {
      Array<float> out({x.size(0), x.numel() / x.size(0)});
      std::copy_n(x.data<float>(), x.numel(), out.mutable_data());
      return out;
    };
    Array<int32_t> selected({T, topk});
    for (int64_t t = 0; t < T; ++t) std::copy_n(a.selected.row<int32_t>(t), topk, selected.mutable_data(t));
    py::dict dict;
    dict["selected"] = selected;
    dict["queries"] = floats(a.index_q);
    dict["weights"] = floats(a.index_weights);
    return dict;
  }

  std::vector<int32_t> lane(const std::vector<int32_t>& blocks, int64_t num_tokens) {
    std::vector<int32_t> ids;
    for (int64_t p = 0; p < num_tokens; ++p)
      ids.push_back(cache_.token_lane()
                        .data<int32_t>()[blocks.at(static_cast<size_t>(p / kBlockSize)) * kBlockSize + p % kBlockSize]);
    return ids;
  }

  // Fills every latent and index key of the cache with NaN.
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
  for (int64_t index_layer = 0; index_layer < KvCache::num_index_layers(config); ++index_layer)
    for (int64_t block = begin; block < end; ++block) {
      const Tensor keys = cache.index_keys(index_layer).index(0, block);
      std::memset(keys.raw(), 0xff, static_cast<size_t>(keys.num_bytes()));
    }
}

void register_cpu_model(py::module_& testing) {
  py::class_<TestModel>(testing, "Model")
      .def(py::init<const std::string&, const std::string&, int, int64_t, int64_t, const std::string&,
                    const std::string&>(),
           py::arg("folder"), py::arg("dtype") = "auto", py::arg("num_threads") = 1, py::arg("max_tokens") = 512,
           py::arg("num_blocks") = 64, py::arg("kv_cache_dtype") = "auto", py::arg("index_cache_dtype") = "auto")
      .def("forward", &TestModel::forward, py::arg("chunks"), py::arg("num_generated") = 0, py::arg("num_rows") = 0)
      .def("fit_into", &TestModel::fit_into)
      .def("last_ngram_ids", &TestModel::last_ngram_ids)
      .def("latents", &TestModel::latents)
      .def("index_keys", &TestModel::index_keys)
      .def("last_selection", &TestModel::last_selection)
      .def("lane", &TestModel::lane)
      .def("poison", &TestModel::poison)
      .def("weight_formats", &TestModel::weight_formats);
}

}  // namespace longcat
