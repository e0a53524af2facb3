// Engines on any device, for tests: as Python holds them, and with steps made one by one, which record what they
// computed for each token.
#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>

#include "bindings/py_engine.h"
#include "cpu/attention/index_scores.h"
#include "cpu/attention/latents.h"
#include "cuda/emulation/emulated_device.h"
#include "tests/native/devices.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Records the logits and N-gram ids of every token when it is computed, and the latents and index keys of a sequence at
// its end.
class Recorder final : public StepObserver {
 public:
  explicit Recorder(Ops& ops) : ops_(ops) {}

  struct Record {
    std::map<int64_t, std::vector<float>> logits;       // by position
    std::map<int64_t, std::vector<int32_t>> ngram_ids;  // by position
    std::map<int64_t, int64_t> times_computed;          // by position
    // [sub_layer] of [num_tokens, kv_lora + rope], then [index layer] of [num_tokens, index_head_dim]
    std::vector<std::vector<float>> latents;
    int64_t num_tokens = 0;  // tokens in the cache at the end
  };

  void after_forward(const StepPlan& plan, Model& model, Tensor hidden) override {
    if (break_step.exchange(false)) throw Error("this step was broken on purpose");
    const int64_t vocab = model.config().vocab_size, num_rows = plan.num_tokens();
    const Buffer logits(ops_.device(), num_rows * vocab * 4), rows(ops_.device(), num_rows * 4);
    const Tensor all = rows.tensor(DType::i32, {num_rows}), out = logits.tensor(DType::f32, {num_rows, vocab});
    for (int64_t row = 0; row < num_rows; ++row) all.data<int32_t>()[row] = static_cast<int32_t>(row);
    if (model.shard().world() == 1) model.logits(out, hidden, all);
    const Tensor ngram_ids = model.last_ngram_ids();
    const bool has_logits = model.shard().world() == 1;  // with several ranks, no rank has the logits of all rows
    const std::scoped_lock lock(mutex_);
    int64_t row = 0;
    for (const PlannedChunk& chunk : plan.chunks) {
      Record& record = records_[chunk.sequence->request_id];
      for (int64_t i = 0; i < chunk.count; ++i, ++row) {
        const int64_t position = chunk.start + i;
        if (has_logits) record.logits[position].assign(out.row<float>(row), out.row<float>(row) + vocab);
        if (!ngram_ids.empty())
          record.ngram_ids[position].assign(ngram_ids.row<int32_t>(row),
                                            ngram_ids.row<int32_t>(row) + ngram_ids.size(1));
        ++record.times_computed[position];
      }
    }
  }

  void before_release(const Sequence& s, const KvCache& cache) override {
    const std::scoped_lock lock(mutex_);
    Record& record = records_[s.request_id];
    // A step in flight may be computing the last token.
    record.num_tokens = std::min(s.num_scheduled, static_cast<int64_t>(s.token_ids.size()) - 1);
    if (s.blocks.empty()) record.num_tokens = 0;
    const int64_t dim = kv_lora_rank + rope_dim;
    std::vector<float> scratch(static_cast<size_t>(dim));
    for (int64_t sub_layer = 0; sub_layer < num_sub_layers; ++sub_layer) {
      std::vector<float>& rows = record.latents.emplace_back();
      for (int64_t p = 0; p < record.num_tokens; ++p) {
        const float* row = cpu::read_latents(scratch.data(), cache.latents(sub_layer), s.blocks.data(), p, p + 1,
                                             kv_lora_rank, rope_dim);
        rows.insert(rows.end(), row, row + dim);
      }
    }
    for (int64_t index_layer = 0; index_layer < num_index_layers; ++index_layer) {
      const Tensor keys = cache.index_keys(index_layer);
      scratch.resize(static_cast<size_t>(index_head_dim));
      std::vector<float>& rows = record.latents.emplace_back();
      for (int64_t p = 0; p < record.num_tokens; ++p) {
        const float* row = cpu::read_index_keys(scratch.data(), keys, s.blocks.data(), p, p + 1, index_head_dim);
        rows.insert(rows.end(), row, row + index_head_dim);
      }
    }
  }

  void at(const char* part) override {
    if (part == fails_at) {
      fails_at.clear();
      throw std::bad_alloc();
    }
  }

  Record take(int64_t request_id) {
    const std::scoped_lock lock(mutex_);
    Record record = std::move(records_[request_id]);
    records_.erase(request_id);
    return record;
  }

  int64_t kv_lora_rank = 0, rope_dim = 0, num_sub_layers = 0;
  int64_t num_index_layers = 0, index_head_dim = 0;  // without the MTP layer's, as num_sub_layers
  std::atomic<bool> break_step = false;
  std::string fails_at;  // the part of a step in which one allocation fails

 private:
  Ops& ops_;
  std::mutex mutex_;  // a step in flight runs beside the end of the one before it
  std::map<int64_t, Record> records_;
};

class TestEngine {
 public:
  TestEngine(const std::string& folder, const EngineOptions& options, const PyCommunicator* communicator)
      : engine_(folder, options, {}, communicator ? communicator->ranks->split(0) : nullptr,
                make_test_backend(options, false)),
        recorder_(engine_.ops()) {
    recorder_.kv_lora_rank = engine_.config().kv_lora_rank;
    recorder_.rope_dim = engine_.config().qk_rope_head_dim;
    recorder_.num_sub_layers = engine_.config().num_sub_layers();
    recorder_.num_index_layers = std::max<int64_t>(0, KvCache::num_index_layers(engine_.config()) - 1);
    if (engine_.config().sparse) recorder_.index_head_dim = engine_.config().sparse->index_head_dim;
    engine_.set_observer(&recorder_);
  }
  ~TestEngine() {
    engine_.between_steps([] {});  // a step in flight must not outlive the recorder
  }

  std::vector<StepOutput> step() {
    const GilRelease nogil;
    std::vector<StepOutput> outputs;
    engine_.step(outputs);
    return outputs;
  }

  // Waits for the step in flight. Then writes NaN to the latents and index keys of every block that neither a sequence
  // nor the prefix cache holds. Returns the number of these blocks.
  int64_t poison_free_blocks() {
    std::vector<int64_t> unused;
    for (int64_t block = 1; block <= engine_.num_kv_blocks(); ++block)
      if (engine_.scheduler().blocks().is_unused(static_cast<int32_t>(block))) unused.push_back(block);
    Device& device = engine_.ops().device();
    device.wait(device.submit([&] {
      for (const int64_t block : unused) poison_blocks(engine_.cache(), engine_.config(), block, block + 1);
    }));
    return static_cast<int64_t>(unused.size());
  }

  // Returns the record of a request that has ended: {"logits": {position: bytes}, "ngram_ids": {position: [...]},
  // "times_computed": {position: n}, "latents": [bytes for each sub-layer, then of each indexer's keys], "num_tokens":
  // n}.
  py::dict record(int64_t request_id) {
    const auto bytes = [](const std::vector<float>& values) {
      return py::bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    };
    const Recorder::Record record = recorder_.take(request_id);
    py::dict d, logits;
    py::list latents;
    for (const auto& [position, row] : record.logits) logits[py::int_(position)] = bytes(row);
    for (const auto& rows : record.latents) latents.append(bytes(rows));
    d["logits"] = logits;
    d["latents"] = latents;
    d["ngram_ids"] = record.ngram_ids;
    d["times_computed"] = record.times_computed;
    d["num_tokens"] = record.num_tokens;
    return d;
  }

  void break_next_step() { recorder_.break_step = true; }
  void fail_allocation(std::string part) { recorder_.fails_at = std::move(part); }

  Engine& engine() { return engine_; }

 private:
  Engine engine_;
  Recorder recorder_;
};

}  // namespace

void register_test_engine(py::module_& testing) {
  // Makes a _core.Engine. options.device may name a device of tests.
  testing.def(
      "open_engine",
      [](const std::string& folder, const EngineOptions& options, const py::object& progress,
         const PyCommunicator* communicator, bool fake_nccl) {
        return std::make_unique<PyEngine>(folder, options, progress, communicator,
                                          make_test_backend(options, fake_nccl));
      },
      py::arg("folder"), py::arg("options"), py::arg("progress") = py::none(), py::arg("communicator") = nullptr,
      py::arg("fake_nccl") = false);

  py::class_<TestEngine>(testing, "Engine")
      .def(py::init<const std::string&, const EngineOptions&, const PyCommunicator*>(), py::arg("folder"),
           py::arg("options"), py::arg("communicator") = nullptr, py::call_guard<GilRelease>())
      .def("start", [](TestEngine& self) { self.engine().start(); })
      .def(
          "stop", [](TestEngine& self) { self.engine().stop(); }, py::call_guard<GilRelease>())
      .def(
          "add_request",
          [](TestEngine& self, std::vector<int32_t> ids, const SamplingParams& params, int64_t n) {
            return self.engine().add_request(std::move(ids), params, n);
          },
          py::arg("prompt_token_ids"), py::arg("params"), py::arg("n") = 1)
      .def("abort", [](TestEngine& self, int64_t id) { return self.engine().abort(id); })
      .def("set_mask",
           [](TestEngine& self, int64_t id, int64_t num_output_tokens, std::vector<uint32_t> mask) {
             return self.engine().set_mask(id, num_output_tokens, std::move(mask));
           })
      .def("preempt", [](TestEngine& self, int64_t id, bool may_swap) { return self.engine().preempt(id, may_swap); })
      .def("reset_prefix_cache", [](TestEngine& self) { self.engine().reset_prefix_cache(); })
      .def("has_work", [](TestEngine& self) { return self.engine().has_work(); })
      .def("step", &TestEngine::step)
      .def("draft_counts",  // returns (draft tokens, accepted draft tokens)
           [](TestEngine& self) {
             const SchedulerStats counts = self.engine().metrics().counts;
             return py::make_tuple(counts.num_draft_tokens, counts.num_accepted_tokens);
           })
      .def("drafts",  // returns the draft tokens behind the tokens of a running request
           [](TestEngine& self, int64_t id) {
             const std::shared_ptr<Sequence> sequence = self.engine().scheduler().find(id);
             return sequence ? sequence->drafts : std::vector<int32_t>{};
           })
      .def("num_recordings", [](TestEngine& self) { return self.engine().runner().num_recordings(); })
      .def("num_recorded_nodes", [](TestEngine& self) { return self.engine().runner().num_recorded_nodes(); })
      .def("poison_free_blocks", &TestEngine::poison_free_blocks)
      .def("break_next_step", &TestEngine::break_next_step)
      .def("fail_allocation", &TestEngine::fail_allocation, py::arg("part"))
      .def("record", &TestEngine::record);

  // All that a rank's engine allocates of its device beside its weights [bytes]: after the last report of loading.
  testing.def(
      "allocated_bytes",
      [](const std::string& folder, EngineOptions options, const PyCommunicator* communicator) {
        options.device = "cpu-counting";
        Backend backend = make_test_backend(options, false);
        const auto& device = dynamic_cast<const CountingDevice&>(backend.ops->device());
        int64_t of_weights = 0;
        const Engine engine(
            folder, options, [&](int64_t, int64_t) { of_weights = device.bytes(); },
            communicator ? communicator->ranks->split(0) : nullptr, std::move(backend));
        return device.bytes() - of_weights;
      },
      py::arg("folder"), py::arg("options"), py::arg("communicator") = nullptr, py::call_guard<GilRelease>());

  // What a rank's engine takes of its emulated GPU [bytes]: {"ops", "weights", "cache", "all"}, without peer memory.
  testing.def(
      "emulated_bytes",
      [](const std::string& folder, const EngineOptions& options, const PyCommunicator* communicator) {
        std::map<std::string, int64_t> bytes;
        const GilRelease nogil;
        Backend backend = make_test_backend(options, true);
        const Arena& arena = dynamic_cast<const EmulatedDevice&>(backend.ops->device()).arena();
        bytes["ops"] = arena.used_bytes();
        const Engine engine(
            folder, options, [&](int64_t, int64_t) { bytes["weights"] = arena.used_bytes() - bytes["ops"]; },
            communicator ? communicator->ranks->split(0) : nullptr, std::move(backend));
        bytes["cache"] = engine.kv_cache_bytes();
        bytes["all"] = arena.used_bytes();
        return bytes;
      },
      py::arg("folder"), py::arg("options"), py::arg("communicator") = nullptr);

  testing.def("look_up", [](const std::vector<int32_t>& ids, int64_t num_tokens, int64_t max_match, int64_t min_match) {
    const auto found = look_up(ids, num_tokens, {.max_match = max_match, .min_match = min_match});
    return std::vector<int32_t>(found.begin(), found.end());
  });
}

}  // namespace longcat
