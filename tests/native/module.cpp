// longcat._testing: the parts of the core that tests and benchmarks use and users do not. No wheel contains it.
//
// The module holds its own copy of the runtime. Python types of the core (EngineOptions, SamplingParams, Communicator,
// Engine, the exceptions) are those of longcat._core. That is imported first: pybind11 finds a type by its name.
#include "tests/native/native.h"

PYBIND11_MODULE(_testing, module) {
  using namespace longcat;
  module.doc() = "For longcat's own tests";
  pybind11::module_::import("longcat._core");
  register_cpu_model(module);
  register_cpu_ops(module);
  register_cuda_host(module);
  register_device_model(module);
  register_device_ops(module);
  register_draft_ops(module);
  register_draft_policy(module);
  register_gpu_emulator(module);
  register_nccl(module);
  register_packed_formats(module);
  register_scheduler(module);
  register_test_engine(module);
  register_thread_communicators(module);
  register_tiles(module);
  register_values(module);
}
