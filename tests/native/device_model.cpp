// The model on any device, for tests that compare the backends.
#include <algorithm>

#include "bindings/bindings.h"
#include "cuda/emulation/emulated_device.h"
#include "engine/batch_buffers.h"
#include "io/model_config.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "tests/native/arrays.h"
#include "tests/native/chunks.h"
#include "tests/native/devices.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

Placement table_placement(Ops& ops, const std::string& name) {
  for (const Placement placement : ops.table_placements())
    if (name == "auto" || name == name_of(placement)) return placement;
  throw std::invalid_argument("testing: tables cannot lie there");
}

// A checkpoint that runs explicit batches, recorded or not, as the engine's steps run.
class DeviceModel {
 public:
  DeviceModel(const std::string& folder, const std::string& device, const std::string& dtype,
              const std::string& kv_cache_dtype, int64_t max_tokens, int64_t num_blocks,
              const std::string& ngram_placement, bool with_mtp, const std::string& quantization)
      : config_(load_model_config(folder)),
        checkpoint_(folder),
        ops_(make_test_ops(device, 1)),
        model_(*ops_, config_, single_rank(config_), load(dtype, ngram_placement, with_mtp, quantization), max_tokens,
               max_tokens),
        cache_(ops_->device(), config_, num_blocks,
               kv_cache_dtype == "fp8"   ? DType::f8_e4m3
               : kv_cache_dtype == "f32" ? DType::f32
                                         : DType::bf16),
        buffers_(ops_->device(), max_tokens, max_tokens, num_blocks),
        rows_(ops_->device(), max_tokens * 4),
        logits_(ops_->device(), max_tokens * config_.vocab_size * 4) {}

  // Returns the logits of every token. num_rows: rows with padding. recorded: through Device::record.
  Array<float> forward(const Chunks& chunks, size_t num_generated, int64_t num_rows, bool recorded) {
    Device& device = ops_->device();
    buffers_.stage(chunk_views(chunks, num_generated), 0, num_rows);
    std::vector<float> logits;
    device.wait(device.submit([&] {
      const ForwardBatch batch = buffers_.upload(0);
      const int64_t num_tokens = batch.num_tokens();
      std::vector<int32_t> all(static_cast<size_t>(num_tokens));
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
      const Tensor rows = rows_.tensor(DType::i32, {num_tokens});
      device.upload(rows.raw(), all.data(), rows.num_bytes());
      const auto work = [&] {
        hidden_ = model_.forward(batch, cache_);
        model_.logits(logits_.tensor(DType::f32, {num_tokens, config_.vocab_size}), hidden_, rows);
      };
      if (recorded) {
        const std::unique_ptr<Recording> recording = device.record(work);
        recording->launch();
        recording->launch();  // a replay must write the same
        num_nodes_ = recording->num_nodes();
      } else {
        work();
      }
      logits = logits_on_host(num_tokens);
    }));
    return as_array(logits);
  }

  // Returns the logits of the MTP layer for every row of `chunks`, whose tokens are those after the last pass. rows:
  // the row of the last pass that each row continues; empty: row i continues row i.
  Array<float> forward_mtp(const Chunks& chunks, size_t num_generated, const std::vector<int32_t>& rows) {
    Device& device = ops_->device();
    buffers_.stage(chunk_views(chunks, num_generated), 0);
    std::vector<float> logits;
    device.wait(device.submit([&] {
      const ForwardBatch batch = buffers_.upload(0);
      const int64_t num_tokens = batch.num_tokens();
      const auto upload = [&](const std::vector<int32_t>& values) {
        if (values.empty()) return Tensor{};
        const Tensor on_device = rows_.tensor(DType::i32, {static_cast<int64_t>(values.size())});
        device.upload(on_device.raw(), values.data(), on_device.num_bytes());
        return on_device;
      };
      hidden_ = model_.forward_mtp(batch, cache_, hidden_, upload(rows));
      std::vector<int32_t> all(static_cast<size_t>(num_tokens));
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
      model_.logits(logits_.tensor(DType::f32, {num_tokens, config_.vocab_size}), hidden_, upload(all));
      logits = logits_on_host(num_tokens);
    }));
    return as_array(logits);
  }

  // Returns whether experts are read from the disk.
  bool fit_into(int64_t available_bytes) {
    model_.fit_into(available_bytes);
    return model_.reads_experts_from_disk();
  }

  int64_t num_nodes() const { return num_nodes_; }  // kernels and copies of the last recorded step

  Array<int32_t> last_ngram_ids() {
    const Tensor ids = model_.last_ngram_ids();
    if (ids.empty()) return Array<int32_t>(0);
    Array<int32_t> out({ids.size(0), ids.size(1)});
    ops_->device().copy_to_host(out.mutable_data(), ids.raw(), ids.num_bytes());
    return out;
  }

  // Returns blocks of the cache as bytes: [num_blocks, bytes of a block in a sub-layer].
  Array<uint8_t> latents(int64_t sub_layer, const std::vector<int32_t>& blocks) {
    const Tensor all = cache_.latents(sub_layer);
    const int64_t bytes = all.index(0, 0).num_bytes();
    Array<uint8_t> out({static_cast<int64_t>(blocks.size()), bytes});
    for (size_t i = 0; i < blocks.size(); ++i)
      ops_->device().copy_to_host(out.mutable_data(static_cast<py::ssize_t>(i)), all.index(0, blocks[i]).raw(), bytes);
    return out;
  }

  // Returns the allocated memory of an emulated device: all of it, and that of the weights [bytes].
  int64_t emulated_bytes() const { return dynamic_cast<EmulatedDevice&>(ops_->device()).arena().used_bytes(); }
  int64_t emulated_weight_bytes() const { return emulated_weight_bytes_; }

  void poison() {
    for (int64_t sub_layer = 0; sub_layer < KvCache::num_sub_layers(config_); ++sub_layer)
      for (int64_t block = 0; block < cache_.num_blocks(); ++block) {
        const Tensor latents = cache_.latents(sub_layer).index(0, block);
        const std::vector<uint8_t> nan(static_cast<size_t>(latents.num_bytes()), 0xff);
        ops_->device().copy_from_host(latents.raw(), nan.data(), latents.num_bytes());
      }
  }

 private:
  ModelWeights load(const std::string& dtype, const std::string& ngram_placement, bool with_mtp,
                    const std::string& quantization) {
    const Fp8OnLoad fp8 = quantization == "fp8"           ? Fp8OnLoad::all
                          : quantization == "fp8-experts" ? Fp8OnLoad::experts
                                                          : Fp8OnLoad::none;
    const bool emulated = dynamic_cast<EmulatedDevice*>(&ops_->device()) != nullptr;
    const int64_t before = emulated ? emulated_bytes() : 0;
    ModelWeights weights =
        load_weights(checkpoint_, config_, make_shard(config_, 1, 1, 0), dtype == "f32" ? DType::f32 : DType::bf16,
                     *ops_, table_placement(*ops_, ngram_placement), fp8, with_mtp);
    if (emulated) emulated_weight_bytes_ = emulated_bytes() - before;
    return weights;
  }

  // Returns a plain vector, because a device may call this on its own thread, which must make no Python object.
  std::vector<float> logits_on_host(int64_t num_tokens) {
    std::vector<float> logits(static_cast<size_t>(num_tokens * config_.vocab_size));
    ops_->device().copy_to_host(logits.data(), logits_.data(), static_cast<int64_t>(logits.size()) * 4);
    return logits;
  }

  Array<float> as_array(const std::vector<float>& logits) const {
    Array<float> out({static_cast<int64_t>(logits.size()) / config_.vocab_size, config_.vocab_size});
    std::copy(logits.begin(), logits.end(), out.mutable_data());
    return out;
  }

  ModelConfig config_;
  Checkpoint checkpoint_;
  std::unique_ptr<Ops> ops_;
  int64_t emulated_weight_bytes_ = 0;  // before the model, whose making sets it
  Model model_;
  KvCache cache_;
  BatchBuffers buffers_;
  Buffer rows_, logits_;
  Tensor hidden_;  // hidden states of the last pass
  int64_t num_nodes_ = 0;
};

}  // namespace

void register_device_model(py::module_& testing) {
  py::class_<DeviceModel>(testing, "DeviceModel")
      .def(py::init<const std::string&, const std::string&, const std::string&, const std::string&, int64_t, int64_t,
                    const std::string&, bool, const std::string&>(),
           py::arg("folder"), py::arg("device"), py::arg("dtype") = "bf16", py::arg("kv_cache_dtype") = "bf16",
           py::arg("max_tokens") = 256, py::arg("num_blocks") = 16, py::arg("ngram_placement") = "auto",
           py::arg("with_mtp") = false, py::arg("quantization") = "")
      .def("emulated_bytes", &DeviceModel::emulated_bytes)
      .def("emulated_weight_bytes", &DeviceModel::emulated_weight_bytes)
      .def("forward", &DeviceModel::forward, py::arg("chunks"), py::arg("num_generated") = 0, py::arg("num_rows") = 0,
           py::arg("recorded") = false)
      .def("forward_mtp", &DeviceModel::forward_mtp, py::arg("chunks"), py::arg("num_generated") = 0,
           py::arg("rows") = std::vector<int32_t>{})
      .def("fit_into", &DeviceModel::fit_into)
      .def("num_nodes", &DeviceModel::num_nodes)
      .def("last_ngram_ids", &DeviceModel::last_ngram_ids)
      .def("latents", &DeviceModel::latents)
      .def("poison", &DeviceModel::poison);
}

}  // namespace longcat
