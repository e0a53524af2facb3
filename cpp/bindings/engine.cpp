// Binding of Engine and of its output queues. The GIL is released while a call waits or computes.
#include "engine/engine.h"

#include "bindings/bindings.h"
#include "bindings/py_engine.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Appends all outputs to the deque `arrived`. C++ does this, because a signal may interrupt Python as soon as a call
// returns, and would lose a computed token.
void take(OutputQueue& queue, const py::object& arrived) {
  const py::object append = arrived.attr("append");
  for (StepOutput& output : queue.take()) append(py::cast(std::move(output)));
}

// Waits until there are outputs (returns true) or the engine ends (false). Throws the exception of a signal handler.
bool wait(OutputQueue& queue, const py::object& arrived) {
  constexpr double kSignalCheckMs = 50;
  while (true) {
    bool closed, any;
    {
      const GilRelease nogil;
      queue.wait(kSignalCheckMs);
      closed = queue.closed();
      any = !queue.empty();
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (any) {
      take(queue, arrived);
      return true;
    }
    if (closed) return false;
  }
}

py::dict to_dict(const EngineMetrics& m) {
  const SchedulerStats& c = m.counts;
  py::dict d;
  d["num_requests"] = c.num_requests;
  for (const FinishReason reason : {FinishReason::stop, FinishReason::length, FinishReason::abort, FinishReason::error})
    d[py::str(str_cat("num_finished_", name_of(reason)))] = c.num_finished[static_cast<int>(reason)];
  d["num_prompt_tokens"] = c.num_prompt_tokens;
  d["num_generated_tokens"] = c.num_generated_tokens;
  d["prefix_cache_queries"] = c.num_prefix_queries;
  d["prefix_cache_hits"] = c.num_prefix_hits;
  d["num_draft_tokens"] = c.num_draft_tokens;
  d["num_accepted_tokens"] = c.num_accepted_tokens;
  d["draft_tokens_now"] = m.num_drafts_now;
  d["draft_acceptance"] = m.draft_acceptance;
  d["draft_cost"] = m.draft_cost;
  d["num_swaps"] = c.num_swaps;
  d["num_recomputes"] = c.num_recomputes;
  d["num_steps"] = c.num_steps;
  d["num_running"] = m.num_running;
  d["num_waiting"] = m.num_waiting;
  d["num_kv_blocks"] = m.num_kv_blocks;
  d["num_free_blocks"] = m.num_free_blocks;
  d["num_cached_blocks"] = m.num_cached_blocks;
  return d;
}

Speculation::Method speculation_method(const std::string& name) {
  if (name == "ngram") return Speculation::Method::prompt_lookup;
  if (name == "mtp") return Speculation::Method::mtp;
  throw std::invalid_argument(str_cat("speculative method \"", name, "\" is not known"));
}

void register_sampling_params(py::module_& module) {
  py::class_<SamplingParams> sampling(module, "SamplingParams");
  sampling.def(py::init<>());
  const auto bind = [&]<class T>(const SamplingField<T>& field) {
    if constexpr (std::is_same_v<T, std::vector<LogitBias>>) {
      sampling.def("set_logit_bias", [](SamplingParams& self, const std::map<int32_t, float>& bias) {
        self.logit_bias.clear();
        for (const auto& [token_id, value] : bias) self.logit_bias.push_back({token_id, value});
      });
    } else {
      sampling.def_readwrite(field.name, field.member);
    }
  };
  std::apply([&](const auto&... field) { (bind(field), ...); }, kSamplingFields);
}

}  // namespace

void register_engine(py::module_& module) {
  py::class_<EngineOptions>(module, "EngineOptions")
      .def(py::init<>())
      .def_readwrite("device", &EngineOptions::device)
      .def_readwrite("dtype", &EngineOptions::dtype)
      .def_readwrite("quantization", &EngineOptions::quantization)
      .def_readwrite("kv_cache_dtype", &EngineOptions::kv_cache_dtype)
      .def_readwrite("index_cache_dtype", &EngineOptions::index_cache_dtype)
      .def_readwrite("ngram_placement", &EngineOptions::ngram_placement)
      .def_readwrite("max_model_len", &EngineOptions::max_model_len)
      .def_readwrite("max_num_seqs", &EngineOptions::max_num_seqs)
      .def_readwrite("max_num_batched_tokens", &EngineOptions::max_num_batched_tokens)
      .def_readwrite("max_num_queued", &EngineOptions::max_num_queued)
      .def_readwrite("kv_cache_memory", &EngineOptions::kv_cache_memory)
      .def_readwrite("swap_memory", &EngineOptions::swap_memory)
      .def_readwrite("enable_prefix_caching", &EngineOptions::enable_prefix_caching)
      .def_readwrite("mask_timeout_ms", &EngineOptions::mask_timeout_ms)
      .def_readwrite("num_threads", &EngineOptions::num_threads)
      .def_readwrite("tensor_parallel_size", &EngineOptions::tensor_parallel_size)
      .def_readwrite("expert_parallel_size", &EngineOptions::expert_parallel_size)
      .def_property(  // (method, num_tokens, max_match, min_match of prompt lookup, adaptive and draft_vocab of the MTP
                      // layer)
          "speculation", nullptr,
          [](EngineOptions& o, const std::tuple<std::string, int64_t, int64_t, int64_t, bool, int64_t>& values) {
            const auto& [method, num_tokens, max_match, min_match, adaptive, draft_vocab] = values;
            o.speculation = {.method = speculation_method(method),
                             .num_tokens = num_tokens,
                             .lookup = {.max_match = max_match, .min_match = min_match},
                             .adaptive = adaptive,
                             .draft_vocab = draft_vocab};
          })
      .def_property_readonly("drafts_by_mtp", [](const EngineOptions& o) { return o.speculation.by_mtp(); })
      .def_property_readonly("draft_vocab", [](const EngineOptions& o) { return o.speculation.draft_vocab; })
      .def_readwrite("gpu_memory_utilization", &EngineOptions::gpu_memory_utilization)
      .def_readwrite("ranks_per_machine", &EngineOptions::ranks_per_machine)
      .def_readwrite("overlap", &EngineOptions::overlap);

  register_sampling_params(module);

  py::class_<TokenLogprobs>(module, "TokenLogprobs")
      .def_readonly("rank", &TokenLogprobs::rank)
      .def_readonly("ids", &TokenLogprobs::ids)
      .def_readonly("logprobs", &TokenLogprobs::logprobs);

  py::class_<RequestStats>(module, "RequestStats")
      .def_readonly("queue_ms", &RequestStats::queue_ms)
      .def_readonly("prefill_ms", &RequestStats::prefill_ms)
      .def_readonly("decode_ms", &RequestStats::decode_ms)
      .def_readonly("num_cached_tokens", &RequestStats::num_cached_tokens)
      .def_readonly("num_preemptions", &RequestStats::num_preemptions);

  py::class_<StepOutput>(module, "StepOutput")
      .def_readonly("request_id", &StepOutput::request_id)
      .def_readonly("token_id", &StepOutput::token_id)
      .def_readonly("error", &StepOutput::error)
      .def_readonly("logprobs", &StepOutput::logprobs)
      .def_readonly("prompt_logprobs", &StepOutput::prompt_logprobs)
      .def_readonly("stats", &StepOutput::stats)
      .def_property_readonly("finish_reason", [](const StepOutput& output) -> py::object {
        if (output.finish_reason == FinishReason::none) return py::none();
        return py::str(name_of(output.finish_reason));
      });

  py::class_<OutputQueue, std::shared_ptr<OutputQueue>>(module, "OutputQueue")
      .def(py::init<>())
      .def("wait", &wait)
      .def("take", &take)
      .def("close", &OutputQueue::close)
      .def("event_fd", &OutputQueue::event_fd)
      .def_property_readonly("closed", &OutputQueue::closed);

  py::class_<PyEngine>(module, "Engine")
      .def(py::init([](const std::string& folder, const EngineOptions& options, const py::object& progress,
                       const PyCommunicator* communicator) {
             return std::make_unique<PyEngine>(folder, options, progress, communicator);
           }),
           py::arg("folder"), py::arg("options"), py::arg("progress") = py::none(), py::arg("communicator") = nullptr)
      .def("join", [](PyEngine& self) { self.with([](Engine& e) { e.join(); }); })
      .def("abort_ranks",
           [](PyEngine& self, const std::string& reason) { self.with([&](Engine& e) { e.abort_ranks(reason); }); })
      .def("start", [](PyEngine& self) { self.with([](Engine& e) { e.start(); }); })
      .def("check_request",
           [](PyEngine& self, const std::vector<int32_t>& prompt_token_ids, const SamplingParams& params) {
             self.with([&](Engine& e) { e.check_request(prompt_token_ids, params); });
           })
      .def(
          "add_request",
          [](PyEngine& self, std::vector<int32_t> prompt_token_ids, const SamplingParams& params, int64_t n,
             std::shared_ptr<OutputQueue> queue, std::shared_ptr<OutputQueue> mask_queue, int64_t group) {
            return self.with([&](Engine& e) {
              return e.add_request(std::move(prompt_token_ids), params, n, std::move(queue), std::move(mask_queue),
                                   group);
            });
          },
          py::arg("prompt_token_ids"), py::arg("params"), py::arg("n") = 1, py::arg("queue") = nullptr,
          py::arg("mask_queue") = nullptr, py::arg("group") = -1)
      .def("abort",
           [](PyEngine& self, int64_t request_id) { return self.with([&](Engine& e) { return e.abort(request_id); }); })
      .def("fail",
           [](PyEngine& self, int64_t request_id, const std::string& error) {
             return self.with([&](Engine& e) { return e.fail(request_id, error); });
           })
      .def("set_mask",
           [](PyEngine& self, int64_t request_id, int64_t num_output_tokens, std::vector<uint32_t> mask) {
             return self.with([&](Engine& e) { return e.set_mask(request_id, num_output_tokens, std::move(mask)); });
           })
      .def("has_work", [](PyEngine& self) { return self.with([](Engine& e) { return e.has_work(); }); })
      .def("step", &PyEngine::step)
      .def("preempt",
           [](PyEngine& self, int64_t request_id, bool may_swap) {
             return self.with([&](Engine& e) { return e.preempt(request_id, may_swap); });
           })
      .def("reset_prefix_cache", [](PyEngine& self) { self.with([](Engine& e) { e.reset_prefix_cache(); }); })
      .def("metrics", [](PyEngine& self) { return to_dict(self.with([](Engine& e) { return e.metrics(); })); })
      .def("failure", [](PyEngine& self) { return self.with([](Engine& e) { return e.failure(); }); })
      .def("forward", &PyEngine::forward, py::arg("token_ids"), py::arg("chunk_size") = 0)
      .def("check_process", &PyEngine::check_process)
      .def("close", &PyEngine::close)
      .def("info", [](PyEngine& self) {
        py::dict info;
        self.with([&](Engine& e) {
          const GilAcquire gil;
          info["architecture"] = e.config().architecture;
          info["device"] = e.device_name();
          info["dtype"] = name_of(e.dtype());
          info["kv_cache_dtype"] = name_of(e.kv_cache_dtype());
          info["vocab_size"] = e.config().vocab_size;
          info["eos_token_id"] = e.config().eos_token_id;
          info["max_model_len"] = e.max_model_len();
          info["num_kv_blocks"] = e.num_kv_blocks();
          info["num_free_blocks"] = e.metrics().num_free_blocks;
          info["kv_cache_bytes"] = e.kv_cache_bytes();
          info["num_threads"] = e.num_threads();
          info["rank"] = e.rank();
          info["world_size"] = e.world_size();
          info["all_reduce"] = e.way_of_sums();
          info["weight_bytes"] = e.weight_bytes();
          info["table_bytes"] = e.table_bytes();
          info["warnings"] = e.warnings();
        });
        return info;
      });
}

}  // namespace longcat
