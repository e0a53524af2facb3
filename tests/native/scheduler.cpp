// The scheduler without a model. Tests play the part of the runner, and know the content of each block at any time.

#include "engine/scheduler.h"

#include <algorithm>
#include <deque>

#include "bindings/bindings.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

namespace {

const char* name_of(BlockMove::Kind kind) {
  switch (kind) {
    case BlockMove::Kind::copy:
      return "copy";
    case BlockMove::Kind::swap_out:
      return "swap out";
    case BlockMove::Kind::swap_in:
      return "swap in";
    case BlockMove::Kind::drop:
      return "drop";
  }
  return "";
}

py::dict to_dict(const StepPlan& plan) {
  py::list moves, chunks, draws;
  for (const BlockMove& move : plan.moves)
    moves.append(py::make_tuple(name_of(move.kind), move.block, move.other_block));
  for (const PlannedChunk& chunk : plan.chunks) {
    py::dict d;
    d["request_id"] = chunk.sequence->request_id;
    d["start"] = chunk.start;
    d["count"] = chunk.count;
    d["generated"] = chunk.generated;
    d["source"] = chunk.source;
    d["token_ids"] = chunk.token_ids;
    d["blocks"] = chunk.blocks;
    d["score_begin"] = chunk.score_begin;
    d["score_end"] = chunk.score_end;
    d["is_drawn_from"] = chunk.is_drawn_from;
    chunks.append(std::move(d));
  }
  for (const PlannedDraw& draw : plan.draws) {
    py::dict d;
    d["request_id"] = draw.sequence->request_id;
    d["chunk"] = draw.chunk;
    d["num_tokens"] = draw.num_tokens;
    d["ends"] = draw.ends;
    draws.append(std::move(d));
  }
  py::dict d;
  d["moves"] = std::move(moves);
  d["chunks"] = std::move(chunks);
  d["draws"] = std::move(draws);
  return d;
}

py::dict to_dict(const Sequence& sequence) {
  std::vector<int64_t> forks;
  for (const auto& fork : sequence.forks) forks.push_back(fork->request_id);
  py::dict d;
  d["running"] = sequence.state == Sequence::State::running;
  d["is_short"] = sequence.is_short;
  d["num_pending"] = sequence.num_pending;
  d["num_scheduled"] = sequence.num_scheduled;
  d["num_cached_tokens"] = sequence.stats.num_cached_tokens;
  d["blocks"] = sequence.blocks;
  d["swapped"] = sequence.swapped;
  d["forks"] = forks;
  return d;
}

// Drives a scheduler as Engine does: it commits plans in their order, and one may be in flight when the next is made.
class TestScheduler {
 public:
  explicit TestScheduler(const SchedulerOptions& options) : scheduler_(options) {}

  std::vector<int64_t> add(const std::vector<int32_t>& prompt, const SamplingParams& params, int64_t n, int64_t group) {
    std::vector<std::shared_ptr<Sequence>> sequences;
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < n; ++i) {
      Sequence& sequence = *sequences.emplace_back(std::make_shared<Sequence>());
      sequence.request_id = next_request_id_ + i;
      sequence.params = params;
      sequence.group = group;
      if (i > 0) sequence.params.prompt_logprobs = -1;
      sequence.num_prompt_tokens = static_cast<int64_t>(prompt.size());
      sequence.max_tokens = params.max_tokens;
      sequence.token_ids = prompt;
      ids.push_back(sequence.request_id);
    }
    scheduler_.add(sequences);
    next_request_id_ += n;
    return ids;
  }

  // A plan without chunks does not count as in flight: its moves come with the next plan.
  py::dict schedule() {
    LC_CHECK(plans_.size() <= 1, "commit the oldest plan first");
    StepPlan plan = scheduler_.schedule(Clock::now());
    py::dict d = to_dict(plan);
    if (!plan.empty()) plans_.push_back(std::move(plan));
    return d;
  }

  // Commits the oldest plan in flight, with one drawn id for each of its draws. Returns (request id, reason) of the
  // sequences that ended.
  std::vector<std::pair<int64_t, std::string>> commit(const std::vector<int32_t>& token_ids) {
    const StepPlan plan = std::move(plans_.front());
    plans_.pop_front();
    LC_CHECK(token_ids.size() == plan.draws.size());
    std::vector<std::pair<int64_t, std::string>> ended;
    for (size_t i = 0; i < plan.draws.size(); ++i) {
      Sequence& s = *plan.draws[i].sequence;
      if (s.state == Sequence::State::finished) continue;
      FinishReason reason = FinishReason::length;
      if (!plan.draws[i].ends) {
        scheduler_.commit(s, token_ids[i], Clock::now());
        const std::vector<int32_t>& stops = s.params.stop_token_ids;
        if (std::find(stops.begin(), stops.end(), token_ids[i]) != stops.end()) {
          reason = FinishReason::stop;
        } else if (static_cast<int64_t>(s.token_ids.size()) - s.num_prompt_tokens < s.max_tokens) {
          continue;
        }
      }
      scheduler_.finish(s, reason);
      ended.emplace_back(s.request_id, longcat::name_of(reason));
    }
    return ended;
  }

  bool abort(int64_t request_id) {
    const std::shared_ptr<Sequence> sequence = scheduler_.find(request_id);
    if (sequence) scheduler_.finish(*sequence, FinishReason::abort);
    return sequence != nullptr;
  }

  // Fails the plans in flight: the sequences that they compute end. Returns their request ids.
  std::vector<int64_t> start_over() {
    std::vector<int64_t> ended;
    for (const StepPlan& plan : plans_)
      for (const PlannedChunk& chunk : plan.chunks)
        if (chunk.sequence->state != Sequence::State::finished) {
          scheduler_.finish(*chunk.sequence, FinishReason::error);
          ended.push_back(chunk.sequence->request_id);
        }
    plans_.clear();
    scheduler_.start_over();
    return ended;
  }

  bool set_mask(int64_t request_id, int64_t num_output_tokens) {
    const std::shared_ptr<Sequence> sequence = scheduler_.find(request_id);
    if (sequence) sequence->masked_tokens = num_output_tokens;
    return sequence != nullptr;
  }

  // Returns the sequences that have not ended, by request id.
  py::dict sequences() const {
    py::dict all;
    scheduler_.for_each([&](const Sequence& sequence) { all[py::int_(sequence.request_id)] = to_dict(sequence); });
    return all;
  }

  py::dict stats() const {
    const SchedulerStats& s = scheduler_.stats();
    py::dict d;
    d["num_requests"] = s.num_requests;
    d["num_prefix_hits"] = s.num_prefix_hits;
    d["num_swaps"] = s.num_swaps;
    d["num_recomputes"] = s.num_recomputes;
    d["num_steps"] = s.num_steps;
    return d;
  }

  Scheduler& scheduler() { return scheduler_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  Scheduler scheduler_;
  std::deque<StepPlan> plans_;  // in flight
  int64_t next_request_id_ = 0;
};

}  // namespace

void register_scheduler(py::module_& testing) {
  py::class_<TestScheduler>(testing, "Scheduler")
      .def(py::init([](int64_t max_num_seqs, int64_t max_num_batched_tokens, int64_t max_num_queued, int64_t num_blocks,
                       int64_t num_host_blocks, bool enable_prefix_caching) {
             return TestScheduler({.max_num_seqs = max_num_seqs,
                                   .max_num_batched_tokens = max_num_batched_tokens,
                                   .max_num_queued = max_num_queued,
                                   .num_blocks = num_blocks,
                                   .num_host_blocks = num_host_blocks,
                                   .enable_prefix_caching = enable_prefix_caching});
           }),
           py::kw_only(), py::arg("max_num_seqs") = 16, py::arg("max_num_batched_tokens") = 512,
           py::arg("max_num_queued") = 4096, py::arg("num_blocks") = 2, py::arg("num_host_blocks") = 0,
           py::arg("enable_prefix_caching") = true)
      .def(
          "add",
          [](TestScheduler& self, const std::vector<int32_t>& prompt, int64_t max_tokens, int64_t n, bool constrained,
             int64_t prompt_logprobs, const std::vector<int32_t>& stop_token_ids, int64_t group) {
            SamplingParams params;
            params.max_tokens = max_tokens;
            params.stop_token_ids = stop_token_ids;
            params.prompt_logprobs = prompt_logprobs;
            params.constrained = constrained;
            return self.add(prompt, params, n, group);
          },
          py::arg("prompt"), py::arg("max_tokens"), py::arg("n") = 1, py::arg("constrained") = false,
          py::arg("prompt_logprobs") = -1, py::arg("stop_token_ids") = std::vector<int32_t>{}, py::arg("group") = -1)
      .def("schedule", &TestScheduler::schedule)
      .def("commit", &TestScheduler::commit)
      .def("abort", &TestScheduler::abort)
      .def("preempt", [](TestScheduler& self, int64_t request_id,
                         bool may_swap) { return self.scheduler().preempt(request_id, may_swap); })
      .def("set_mask", &TestScheduler::set_mask)
      .def("reset_prefix_cache", [](TestScheduler& self) { self.scheduler().reset_prefix_cache(); })
      .def("start_over", &TestScheduler::start_over)
      .def("borrow", [](TestScheduler& self, int64_t num_blocks) { return self.scheduler().borrow(num_blocks); })
      .def("give_back",
           [](TestScheduler& self, const std::vector<int32_t>& blocks) { self.scheduler().give_back(blocks); })
      .def("sequences", &TestScheduler::sequences)
      .def("stats", &TestScheduler::stats)
      .def("references",
           [](const TestScheduler& self, int32_t block) { return self.scheduler().blocks().references(block); })
      .def("may_write",
           [](const TestScheduler& self, int32_t block) { return self.scheduler().blocks().may_write(block); })
      .def_property_readonly("num_blocks",
                             [](const TestScheduler& self) { return self.scheduler().blocks().num_blocks(); })
      .def_property_readonly("num_free", [](const TestScheduler& self) { return self.scheduler().blocks().num_free(); })
      .def_property_readonly("num_free_host_blocks",
                             [](const TestScheduler& self) { return self.scheduler().num_free_host_blocks(); })
      .def_property_readonly("num_running", [](const TestScheduler& self) { return self.scheduler().num_running(); })
      .def_property_readonly("num_waiting", [](const TestScheduler& self) { return self.scheduler().num_waiting(); });
}

}  // namespace longcat
