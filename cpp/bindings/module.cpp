// longcat._core: the native module. Private; the public names are in the longcat package.
#include "base/available_memory.h"
#include "base/available_threads.h"
#include "base/error.h"
#include "bindings/bindings.h"
#include "cpu/simd/isa.h"
#include "engine/scheduler.h"
#include "ops/backend.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  using namespace longcat;
  module.doc() = "Native core of longcat";
  module.attr("__version__") = LONGCAT_VERSION;
  module.attr("GPU_SPARE_BYTES") = kGpuSpareBytes;
  module.attr("GPU_OPS_BYTES") = kGpuOpsBytes;
  module.attr("GPU_STEP_BYTES") = kGpuStepBytes;
  module.def("available_threads", [] { return available_threads(); }, "Threads this process may run at once.");
  module.def("available_memory", [] { return available_memory(); }, "Bytes this process may still take.");
  module.def(
      "cpu_isa", [] { return name_of(cpu_isa()); },
      "Instruction set the CPU backend runs: amx_bf16, avx512_bf16, avx512_vnni, avx512, avx_vnni, avx2, neon_dotprod "
      "or portable.");
  module.def("cuda_is_built", &cuda_is_built, "Whether this build has the CUDA backend.");
  module.attr("GPU_PROOF") = std::string(kGpuProof);
  module.def("resolved_device", &resolved_device, py::arg("device"), "The device that a name stands for: of \"auto\".");

  // The most derived exception comes last: translators are tried from the newest to the oldest.
  auto& error = py::register_exception<Error>(module, "Error", PyExc_RuntimeError);
  auto& out_of_memory = py::register_exception<OutOfMemory>(module, "OutOfMemoryError", error.ptr());
  auto& queue_full = py::register_exception<QueueFull>(module, "QueueFullError", error.ptr());
  error.attr("__module__") = "longcat";
  queue_full.attr("__module__") = "longcat";
  out_of_memory.attr("__module__") = "longcat";

  register_calibration(module);
  register_checkpoint(module);
  register_communicator(module);
  register_engine(module);
  register_packed(module);
}
