#include "bindings/py_engine.h"

#include <exception>
#include <functional>

namespace py = pybind11;

namespace longcat {

PyEngine::PyEngine(const std::string& folder, const EngineOptions& options, const py::object& progress,
                   const PyCommunicator* communicator, Backend backend) {
  LoadProgress report;
  if (!progress.is_none())
    report = [&](int64_t done, int64_t total) {
      const GilAcquire gil;
      progress(done, total);
    };
  const GilRelease nogil;
  engine_ = std::make_unique<Engine>(folder, options, report, communicator ? communicator->ranks->split(0) : nullptr,
                                     std::move(backend));
}

void PyEngine::check_process() const {
  if (is_forked())
    throw Error(
        str_cat("[engine] this engine belongs to process ", pid_,
                ", and a fork has none of its threads: make an engine of its own (multiprocessing: \"spawn\")"));
}

py::array_t<float> PyEngine::forward(const std::vector<int32_t>& token_ids, int64_t chunk_size) {
  const int64_t vocab = with([&](Engine& e) {
    e.check_forward(token_ids);
    return e.config().vocab_size;
  });
  py::array_t<float> logits({static_cast<int64_t>(token_ids.size()), vocab});
  float* out = logits.mutable_data();
  // Runs signal handlers while the engine computes; an exception of a handler ends the call. Only the main thread runs
  // handlers. Other threads could not get the GIL while the interpreter shuts down.
  std::exception_ptr raised;
  std::function<bool()> stops;
  const py::module_ threading = py::module_::import("threading");
  if (threading.attr("current_thread")().is(threading.attr("main_thread")()))
    stops = [&raised] {
      const GilAcquire gil;
      if (PyErr_CheckSignals() != 0) raised = std::make_exception_ptr(py::error_already_set());
      return raised != nullptr;
    };
  try {
    with([&](Engine& e) { e.forward(token_ids, out, chunk_size, stops); });
  } catch (const Error&) {
    if (!raised) throw;
  }
  if (raised) std::rethrow_exception(raised);
  return logits;
}

std::vector<StepOutput> PyEngine::step() {
  std::vector<StepOutput> outputs;
  with([&](Engine& e) { e.step(outputs); });
  return outputs;
}

void PyEngine::close() {
  if (is_forked()) return static_cast<void>(engine_.release());  // a fork cannot end the engine's thread
  const GilRelease nogil;
  // The lock prefers readers. Without the flag, calls in quick succession would keep this one out for ever.
  closing_ = true;
  {
    const std::shared_lock lock(mutex_);
    if (engine_) engine_->give_up();
  }
  const std::unique_lock lock(mutex_);
  engine_.reset();
}

}  // namespace longcat
