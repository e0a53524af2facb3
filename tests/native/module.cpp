// longcat._testing: the parts of the core that tests and benchmarks use and users do not. No wheel contains it.
//
// The module holds its own copy of the runtime. Python types of the core (EngineOptions, SamplingParams, Communicator,
// Engine, the exceptions) are those of longcat._core. That is imported first: pybind11 finds a type by its name.
#include <stdexcept>

#include "base/error.h"
#include "engine/scheduler.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Raises the Python exception of the core. A compiler may link a C++ library into each module, as zig does. Then the
// core does not know the types that this module throws.
void translate(std::exception_ptr exception) {
  const auto raise = [](const char* name, const std::exception& error) {
    py::set_error(py::module_::import("longcat._core").attr(name), error.what());
  };
  try {
    std::rethrow_exception(exception);
  } catch (const py::error_already_set&) {
    throw;
  } catch (const py::builtin_exception&) {
    throw;
  } catch (const OutOfMemory& error) {
    raise("OutOfMemoryError", error);
  } catch (const QueueFull& error) {
    raise("QueueFullError", error);
  } catch (const Error& error) {
    raise("Error", error);
  } catch (const std::invalid_argument& error) {
    py::set_error(PyExc_ValueError, error.what());
  }
}

}  // namespace

}  // namespace longcat

PYBIND11_MODULE(_testing, module) {
  using namespace longcat;
  module.doc() = "For longcat's own tests";
  py::module_::import("longcat._core");
  py::register_local_exception_translator(translate);
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
