// Binding of functions that inspect a checkpoint without loading it: its tensors, its shards, and damage.
#include "base/available_memory.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/load_model.h"
#include "engine/memory_plan.h"
#include "io/model_config.h"
#include "io/safetensors.h"
#include "io/tensor_scan.h"
#include "model/expected_tensors.h"

namespace py = pybind11;

namespace longcat {

namespace {

DType dtype_of(const std::string& name) {
  for (const DType dtype :
       {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3, DType::i8, DType::u8, DType::i32, DType::i64})
    if (name == name_of(dtype)) return dtype;
  throw std::invalid_argument(str_cat("dtype \"", name, "\" is not known"));
}

// Returns [(name, shape, is_linear)] in the order of the forward pass.
py::list to_list(const std::vector<ExpectedTensor>& tensors) {
  py::list list;
  for (const ExpectedTensor& tensor : tensors)
    list.append(py::make_tuple(tensor.name, py::tuple(py::cast(tensor.shape)), tensor.is_linear));
  return list;
}

// Returns [(file name, bytes)].
py::list list_shards(const Checkpoint& checkpoint) {
  py::list list;
  for (const MappedFile& shard : checkpoint.shards())
    list.append(py::make_tuple(shard.path().filename().string(), shard.bytes().size()));
  return list;
}

// Returns [(name, dtype, shape, index of its shard, begin and end in that file [bytes])].
py::list list_tensors(const Checkpoint& checkpoint) {
  py::list list;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const auto begin = tensor.data - checkpoint.shards()[static_cast<size_t>(tensor.shard)].bytes().data();
    list.append(py::make_tuple(name, name_of(tensor.dtype), py::tuple(py::cast(tensor.shape)), tensor.shard, begin,
                               begin + static_cast<int64_t>(tensor.num_bytes)));
  }
  return list;
}

// Returns (index of the first NaN or infinity, or -1; whether it is a NaN; whether all bytes are zero).
py::tuple scan_buffer(const py::buffer& data, const std::string& dtype_name) {
  const py::buffer_info info = data.request();
  const DType dtype = dtype_of(dtype_name);
  if (info.ndim != 1 || info.strides[0] != info.itemsize || info.size * info.itemsize % size_of(dtype))
    throw std::invalid_argument("expected contiguous bytes of whole elements");
  TensorScan scan;
  {
    const GilRelease nogil;
    scan =
        scan_tensor({static_cast<const std::byte*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)}, dtype);
  }
  return py::make_tuple(scan.first_non_finite, scan.is_nan, scan.all_zero);
}

// Returns the ranges {"heads", "ffn", "experts", "expert_ffn", "vocab"} of one rank, "tables" {N-gram table: range of
// its rows} and "adds_ffn".
py::dict shard(const std::string& config_text, int64_t tp, int64_t ep, int64_t rank) {
  const Shard s = make_shard(parse_model_config(config_text, "config.json"), tp, ep, rank);
  const auto range = [](Range r) { return py::make_tuple(r.begin, r.end); };
  py::dict dict;
  dict["heads"] = range(s.heads);
  dict["ffn"] = range(s.ffn);
  dict["experts"] = range(s.experts);
  dict["expert_ffn"] = range(s.expert_ffn);
  dict["vocab"] = range(s.vocab);
  py::dict tables;
  for (size_t i = 0; i < s.tables.size(); ++i)
    tables[py::int_(s.first_table + static_cast<int64_t>(i))] = range(s.tables[i]);
  dict["tables"] = tables;
  dict["adds_ffn"] = s.adds_ffn();
  return dict;
}

// Returns what an engine with these options allocates on the CPU where `available` bytes are free: {"dtype",
// "kv_cache_dtype", "num_index_layers", "index_key_bytes", "max_model_len", "block_tokens", "block_bytes",
// "num_blocks", "buffers": [(allocated, of these never written) of each rank]}. "fields" has those of
// config.json that it may leave out or name otherwise, by the names of LongCat-Flash-Lite.
py::dict plan_memory(const std::string& folder, const EngineOptions& options, int64_t available) {
  check(options);
  const ModelConfig config = load_model_config(folder);
  const auto [dtype, kv_cache_dtype, index_cache_dtype] = number_formats(options, config);
  const CachePlan cache =
      plan_cache(config, options, {kv_cache_dtype, index_cache_dtype}, cache_share(available, options.world_size()));
  py::list buffers;
  for (int64_t rank = 0; rank < options.world_size(); ++rank) {
    const Shard shard = make_shard(config, options.tensor_parallel_size, options.expert_parallel_size, rank);
    const BufferPlan plan = plan_buffers(config, shard, options, cache);
    buffers.append(py::make_tuple(plan.activation_bytes + plan.step_bytes, plan.unwritten_bytes));
  }
  py::dict dict;
  dict["dtype"] = name_of(dtype);
  dict["kv_cache_dtype"] = name_of(kv_cache_dtype);
  dict["num_index_layers"] = KvCache::num_index_layers(config);
  dict["index_key_bytes"] =
      config.sparse ? index_key_size(index_cache_dtype, config.sparse->index_head_dim) * size_of(index_cache_dtype) : 0;
  dict["max_model_len"] = cache.max_model_len;
  dict["block_tokens"] = kBlockSize;
  dict["block_bytes"] = cache.block_bytes;
  dict["num_blocks"] = cache.num_blocks;
  dict["buffers"] = buffers;
  py::dict fields;
  fields["architectures"] = py::make_tuple(config.architecture);
  fields["num_layers"] = config.num_layers;
  fields["ffn_hidden_size"] = config.ffn_hidden_size;
  fields["expert_ffn_hidden_size"] = config.expert_ffn_hidden_size;
  fields["zero_expert_num"] = config.zero_expert_num;
  dict["fields"] = fields;
  return dict;
}

}  // namespace

void register_checkpoint(py::module_& module) {
  const auto config_of = [](const std::string& text) { return parse_model_config(text, "config.json"); };
  module.def(
      "expected_tensors", [=](const std::string& text) { return to_list(expected_tensors(config_of(text))); },
      py::arg("config_text"));
  module.def(
      "expected_mtp_tensors", [=](const std::string& text) { return to_list(expected_mtp_tensors(config_of(text))); },
      py::arg("config_text"));
  module.def("other_spelling", &other_spelling, py::arg("name"));
  module.def("config_warnings", [](const std::string& folder) { return load_model_config(folder).warnings; });
  module.def("plan_memory", &plan_memory, py::arg("folder"), py::arg("options"), py::arg("available"));
  module.def(
      "gpu_buffers",
      [=](const std::string& text, int64_t tp, int64_t ep, int64_t step_tokens) {
        const ModelConfig config = config_of(text);
        return plan_gpu_buffers(config, make_shard(config, tp, ep, 0), step_tokens);
      },
      py::arg("config_text"), py::arg("tp"), py::arg("ep"), py::arg("step_tokens"));
  module.def("shard", &shard, py::arg("config_text"), py::arg("tp"), py::arg("ep"), py::arg("rank"));
  module.def("scan_tensor", &scan_buffer, py::arg("data"), py::arg("dtype"));
  py::class_<Checkpoint>(module, "Checkpoint")
      .def(py::init<const std::string&>(), py::arg("folder"))
      .def("shards", &list_shards)
      .def("tensors", &list_tensors)
      // Throws Error when a tensor is missing, or its shape contradicts the folder's config.json. Returns warnings.
      .def(
          "check_tensors",
          [](const Checkpoint& self, bool with_mtp) {
            return check_tensors(self, load_model_config(self.folder()), with_mtp);
          },
          py::arg("with_mtp") = false);
}

}  // namespace longcat
