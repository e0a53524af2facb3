// Reports the inputs of the model's matrices while it reads a text, for `longcat convert --calibrate`.
#include <functional>
#include <map>

#include "base/available_threads.h"
#include "bindings/bindings.h"
#include "cpu/cpu_ops.h"
#include "engine/batch_buffers.h"
#include "model/model.h"

namespace py = pybind11;

namespace longcat {

namespace {

class ObservingOps final : public CpuOps {
 public:
  using CpuOps::CpuOps;
  std::map<const Weight*, std::string> observed;
  std::function<void(const std::string& name, Tensor x)> observe;

  void linear(Tensor out, Tensor x, const Weight& weight) override {
    if (const auto it = observed.find(&weight); it != observed.end()) observe(it->second, x);
    CpuOps::linear(out, x, weight);
  }

  void linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) override {
    Ops::linear_silu_mul(out, scratch, x, gate_proj, up_proj);  // as two linear(), which report their inputs
  }
};

// The weights that multiply the activations of a whole step, by their names in the checkpoint.
std::map<std::string, const Weight*> linear_weights(const ModelWeights& weights) {
  std::map<std::string, const Weight*> named;
  for (size_t l = 0; l < weights.layers.size(); ++l)
    for (size_t i = 0; i < 2; ++i) {
      const std::string attention = str_cat("model.layers.", l, ".self_attn.", i, ".");
      const std::string ffn = str_cat("model.layers.", l, ".mlps.", i, ".");
      const AttentionWeights& a = weights.layers[l].attention[i];
      const FfnWeights& f = weights.layers[l].ffn[i];
      named[attention + "q_a_proj.weight"] = &a.q_a_proj;
      named[attention + "q_b_proj.weight"] = &a.q_b_proj;
      named[attention + "kv_a_proj_with_mqa.weight"] = &a.kv_a_proj;
      named[attention + "o_proj.weight"] = &a.o_proj;
      named[ffn + "gate_proj.weight"] = &f.gate_proj;
      named[ffn + "up_proj.weight"] = &f.up_proj;
      named[ffn + "down_proj.weight"] = &f.down_proj;
    }
  return named;
}

// A model that reports the inputs of its matrices.
class InputObserver {
 public:
  InputObserver(const std::string& folder, int64_t max_tokens, int64_t max_sequences)
      : config_(load_model_config(folder)),
        checkpoint_(folder),
        ops_(available_threads()),
        model_(ops_, config_, single_rank(config_),
               load_weights(checkpoint_, config_, make_shard(config_, 1, 1, 0), DType::f32, ops_, Placement::disk),
               max_tokens, 1),
        max_blocks_((max_tokens + kBlockSize - 1) / kBlockSize + max_sequences),
        cache_(ops_.device(), config_, max_blocks_ + 1, DType::f32),
        buffers_(ops_.device(), max_tokens, max_sequences, max_blocks_),
        weights_(linear_weights(model_.weights())) {}

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, weight] : weights_) all.push_back(name);
    return all;
  }

  // Reads the beginnings of the sequences, together max_tokens tokens at most. Calls observe(name, x [tokens,
  // in_features]) for each of the named weights. x is valid during the call.
  void read(const std::vector<std::vector<int32_t>>& sequences, const std::vector<std::string>& names,
            const py::function& observe) {
    ops_.observed.clear();
    for (const std::string& name : names) ops_.observed[weights_.at(name)] = name;
    ops_.observe = [&](const std::string& name, Tensor x) {
      const GilAcquire gil;
      const py::capsule owner(x.raw(), [](void*) {});  // numpy uses the memory without a copy
      observe(name,
              py::array_t<float>({x.size(0), x.size(1)}, {x.stride(0) * 4, x.stride(1) * 4}, x.data<float>(), owner));
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
    std::vector<std::vector<int32_t>> blocks;
    std::vector<Chunk> chunks;
    int32_t next = 1;  // block 0 is the null block
    for (const std::vector<int32_t>& ids : sequences) {
      blocks.emplace_back();
      for (size_t begin = 0; begin < ids.size(); begin += kBlockSize) blocks.back().push_back(next++);
    }
    for (size_t i = 0; i < sequences.size(); ++i) chunks.push_back({.token_ids = sequences[i], .blocks = blocks[i]});
    const ForwardBatch batch = buffers_.upload(chunks);
    const GilRelease nogil;
    model_.forward(batch, cache_);
    for (const MappedFile& shard : checkpoint_.shards()) shard.check();
  }

 private:
  ModelConfig config_;
  Checkpoint checkpoint_;
  ObservingOps ops_;
  Model model_;
  int64_t max_blocks_;
  KvCache cache_;
  BatchBuffers buffers_;
  std::map<std::string, const Weight*> weights_;
};

}  // namespace

void register_calibration(py::module_& module) {
  py::class_<InputObserver>(module, "InputObserver")
      .def(py::init<const std::string&, int64_t, int64_t>(), py::arg("folder"), py::arg("max_tokens"),
           py::arg("max_sequences"), py::call_guard<GilRelease>())
      .def("names", &InputObserver::names)
      .def("read", &InputObserver::read, py::arg("sequences"), py::arg("names"), py::arg("observe"));
}

}  // namespace longcat
