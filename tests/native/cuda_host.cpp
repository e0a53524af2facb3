// Host functions of the CUDA backend, for tests.
#include "bindings/bindings.h"
#include "cuda/device/arena.h"
#include "cuda/device/graph_sizes.h"
#include "cuda/emulation/emulated_device.h"
#include "cuda/gemm/gemm.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/ngram.h"
#include "cuda/kernels/sampling.h"
#include "ops/backend.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

GemmProblem dense(int64_t num_tokens, int64_t out_features, int64_t in_features, const std::string& format,
                  const std::string& out_dtype, bool add, int64_t batch, int64_t misalignment) {
  alignas(16) static char memory[32];
  return {.out = memory,
          .x = memory + misalignment,
          .weight = memory,
          .num_tokens = num_tokens,
          .out_features = out_features,
          .in_features = in_features,
          .batch = batch,
          .out_stride = out_features * batch,
          .x_stride = in_features * batch,
          .out_batch_stride = out_features,
          .x_batch_stride = in_features,
          .out_dtype = out_dtype == "f32" ? DType::f32 : DType::bf16,
          .x_dtype = DType::bf16,
          .format = format == "f32"    ? WeightFormat::f32
                    : format == "bf16" ? WeightFormat::bf16
                                       : WeightFormat::fp8_block,
          .add = add};
}

py::tuple gemm_choice(int64_t num_tokens, int64_t out_features, int64_t in_features, const std::string& format,
                      const std::string& out_dtype, bool add, int64_t batch, int compute_capability,
                      int64_t misalignment) {
  const GemmChoice choice = choose_gemm(
      dense(num_tokens, out_features, in_features, format, out_dtype, add, batch, misalignment), compute_capability);
  return py::make_tuple(name_of(choice.path), choice.tile_tokens);
}

// gate_up: of a layer that is joined with another of its kind.
py::tuple grouped_choice(int64_t rows, int64_t out_features, int64_t in_features, bool fp8, int compute_capability,
                         bool gate_up, int64_t misalignment) {
  alignas(16) static char memory[32];
  const Weight weight{.format = fp8 ? WeightFormat::fp8_block : WeightFormat::bf16,
                      .out_features = out_features,
                      .in_features = in_features,
                      .data = memory};
  const GroupedProblem problem{.out = memory,
                               .x = memory,
                               .max_rows = rows,
                               .out_stride = out_features,
                               .x_stride = in_features,
                               .out_dtype = DType::bf16,
                               .x_dtype = fp8 ? DType::f8_e4m3 : DType::bf16};
  Weight other = weight;
  other.data = memory + misalignment;
  const GroupedWeights first({&weight, 1}), second({&other, 1});
  const GemmChoice choice = gate_up ? choose_gate_up(problem, first, second, compute_capability)
                                    : choose_grouped_gemm(problem, second, compute_capability);
  return py::make_tuple(name_of(choice.path), choice.tile_tokens);
}

}  // namespace

void register_cuda_host(py::module_& testing) {
  py::class_<Arena>(testing, "Arena")
      .def(py::init<int64_t>())
      .def("allocate", &Arena::allocate)
      .def("free", &Arena::free)
      .def_property_readonly("used_bytes", &Arena::used_bytes)
      .def_property_readonly("peak_bytes", &Arena::peak_bytes)
      .def_property_readonly("largest_free", &Arena::largest_free);
  testing.def("auto_device", &auto_device, py::arg("proof"), py::arg("has_gpu"));
  testing.def("graph_rows", &graph_rows);
  testing.def("arena_bytes", &arena_bytes);
  testing.def("context_bucket", &context_bucket);
  testing.def("fail_emulated_kernels", &fail_emulated_kernels);
  // Returns (uploads, host allocations, read-backs, waits) of all emulated devices so far.
  testing.def("emulated_calls", [] {
    const EmulatedCalls calls = emulated_calls();
    return py::make_tuple(calls.uploads, calls.host_allocations, calls.read_backs, calls.waits);
  });
  testing.def(
      "fits_few_tokens",
      [](int64_t out_features, int64_t in_features, const std::string& format, const std::string& out_dtype, bool add,
         int64_t batch, int64_t misalignment) {
        return fits_few_tokens(dense(1, out_features, in_features, format, out_dtype, add, batch, misalignment));
      },
      py::arg("out_features"), py::arg("in_features"), py::arg("format") = "bf16", py::arg("out_dtype") = "bf16",
      py::arg("add") = false, py::arg("batch") = 1, py::arg("misalignment") = 0);
  testing.def("emulated_thread_kernels", [] { return emulated_calls().thread_kernels; });
  testing.def("reach_host_memory", &reach_host_memory);
  testing.def("input_scale_at", &input_scale_at);
  testing.def("grouped_choice", &grouped_choice, py::arg("rows"), py::arg("out_features"), py::arg("in_features"),
              py::arg("fp8") = false, py::arg("compute_capability") = 90, py::arg("gate_up") = false,
              py::arg("misalignment") = 0);
  testing.def("kv_piece_begin", &kv_piece_begin);
  testing.def("kv_piece_index", &kv_piece_index);
  testing.def("num_kv_pieces", &num_kv_pieces);
  testing.def("order_key", &order_key);
  testing.def("value_of_key", &value_of_key);
  testing.def("expert_of_row", [](const std::vector<int32_t>& offsets, int64_t row) {
    return expert_of_row(offsets.data(), static_cast<int64_t>(offsets.size()) - 1, row);
  });
  testing.def("gemm_choice", &gemm_choice, py::arg("num_tokens"), py::arg("out_features"), py::arg("in_features"),
              py::arg("format") = "bf16", py::arg("out_dtype") = "bf16", py::arg("add") = false, py::arg("batch") = 1,
              py::arg("compute_capability") = 90, py::arg("misalignment") = 0);
}

}  // namespace longcat
