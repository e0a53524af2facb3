// Binding of Engine: the GIL is released while it computes, and a mutex lets one thread in at a time.
#include "engine/engine.h"

#include <mutex>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace longcat {

namespace {

class PyEngine {
 public:
  PyEngine(const std::string& folder, const EngineOptions& options, const py::object& progress) {
    LoadProgress report;
    if (!progress.is_none())
      report = [&](int64_t done, int64_t total) {
        const py::gil_scoped_acquire gil;
        progress(done, total);
      };
    const py::gil_scoped_release nogil;
    engine_ = std::make_unique<Engine>(folder, options, report);
  }

  // Runs `action(engine)` without the GIL, alone. Throws Error after close().
  template <class Action>
  auto locked(Action&& action) {
    const py::gil_scoped_release nogil;
    const std::lock_guard lock(mutex_);
    if (!engine_) throw Error("[engine] this engine is closed");
    return action(*engine_);
  }

  py::array_t<float> forward(const std::vector<int32_t>& token_ids, int64_t chunk_size) {
    const int64_t vocab = locked([&](Engine& e) {
      e.check_forward(token_ids);
      return e.config().vocab_size;
    });
    py::array_t<float> logits({static_cast<int64_t>(token_ids.size()), vocab});
    float* out = logits.mutable_data();
    locked([&](Engine& e) { e.forward(token_ids, out, chunk_size); });
    return logits;
  }

  // One step; each output is appended to sinks[request_id] when there is such a sink. Done in here because Python may
  // be interrupted as soon as a call returns, and a token that has been computed must not be lost then.
  void step(const py::dict& sinks) {
    for (StepOutput& output : locked([](Engine& e) { return e.step(); })) {
      const py::int_ request_id(output.request_id);
      if (sinks.contains(request_id)) sinks[request_id].attr("append")(py::cast(std::move(output)));
    }
  }

  void close() {
    const py::gil_scoped_release nogil;
    const std::lock_guard lock(mutex_);
    engine_.reset();
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

void register_engine(py::module_& module) {
  py::class_<EngineOptions>(module, "EngineOptions")
      .def(py::init<>())
      .def_readwrite("device", &EngineOptions::device)
      .def_readwrite("dtype", &EngineOptions::dtype)
      .def_readwrite("kv_cache_dtype", &EngineOptions::kv_cache_dtype)
      .def_readwrite("max_model_len", &EngineOptions::max_model_len)
      .def_readwrite("max_num_seqs", &EngineOptions::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &EngineOptions::max_num_batched_tokens)
      .def_readwrite("kv_cache_memory", &EngineOptions::kv_cache_memory)
      .def_readwrite("num_threads", &EngineOptions::num_threads);

  py::class_<SamplingParams>(module, "SamplingParams")
      .def(py::init<>())
      .def_readwrite("max_tokens", &SamplingParams::max_tokens)
      .def_readwrite("temperature", &SamplingParams::temperature)
      .def_readwrite("top_k", &SamplingParams::top_k)
      .def_readwrite("top_p", &SamplingParams::top_p)
      .def_readwrite("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_readwrite("seed", &SamplingParams::seed)
      .def_readwrite("min_tokens", &SamplingParams::min_tokens)
      .def_readwrite("min_p", &SamplingParams::min_p)
      .def_readwrite("presence_penalty", &SamplingParams::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readwrite("sample_idx", &SamplingParams::sample_idx)
      .def_readwrite("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_readwrite("bad_words", &SamplingParams::bad_words)
      .def_readwrite("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readwrite("logprobs", &SamplingParams::logprobs)
      .def_readwrite("prompt_logprobs", &SamplingParams::prompt_logprobs)
      .def("set_logit_bias", [](SamplingParams& self, const std::map<int32_t, float>& bias) {
        self.logit_bias.clear();
        for (const auto& [token_id, value] : bias) self.logit_bias.push_back({token_id, value});
      });

  py::class_<TokenLogprobs>(module, "TokenLogprobs")
      .def_readonly("rank", &TokenLogprobs::rank)
      .def_readonly("ids", &TokenLogprobs::ids)
      .def_readonly("logprobs", &TokenLogprobs::logprobs);

  py::class_<StepOutput>(module, "StepOutput")
      .def_readonly("request_id", &StepOutput::request_id)
      .def_readonly("token_id", &StepOutput::token_id)
      .def_readonly("logprobs", &StepOutput::logprobs)
      .def_readonly("prompt_logprobs", &StepOutput::prompt_logprobs)
      .def_property_readonly("finish_reason", [](const StepOutput& output) -> py::object {
        if (output.finish_reason == FinishReason::none) return py::none();
        return py::str(name_of(output.finish_reason));
      });

  py::class_<PyEngine>(module, "Engine")
      .def(py::init<const std::string&, const EngineOptions&, const py::object&>(), py::arg("folder"),
           py::arg("options"), py::arg("progress") = py::none())
      .def("add_request",
           [](PyEngine& self, std::vector<int32_t> prompt_token_ids, const SamplingParams& params) {
             return self.locked([&](Engine& e) { return e.add_request(std::move(prompt_token_ids), params); });
           })
      .def("abort", [](PyEngine& self,
                       int64_t request_id) { return self.locked([&](Engine& e) { return e.abort(request_id); }); })
      .def("set_mask",
           [](PyEngine& self, int64_t request_id, std::vector<uint32_t> mask) {
             return self.locked([&](Engine& e) { return e.set_mask(request_id, std::move(mask)); });
           })
      .def("has_work", [](PyEngine& self) { return self.locked([](Engine& e) { return e.has_work(); }); })
      .def("step", &PyEngine::step)
      .def("forward", &PyEngine::forward, py::arg("token_ids"), py::arg("chunk_size") = 0)
      .def("close", &PyEngine::close)
      .def("info", [](PyEngine& self) {
        py::dict info;
        self.locked([&](Engine& e) {
          const py::gil_scoped_acquire gil;
          info["architecture"] = e.config().architecture;
          info["device"] = e.device_name();
          info["dtype"] = name_of(e.dtype());
          info["kv_cache_dtype"] = name_of(e.kv_cache_dtype());
          info["vocab_size"] = e.config().vocab_size;
          info["eos_token_id"] = e.config().eos_token_id;
          info["max_model_len"] = e.max_model_len();
          info["num_kv_blocks"] = e.num_kv_blocks();
          info["num_free_blocks"] = e.num_free_blocks();
          info["kv_cache_bytes"] = e.kv_cache_bytes();
          info["num_threads"] = e.num_threads();
          info["warnings"] = e.warnings();
        });
        return info;
      });
}

}  // namespace longcat
