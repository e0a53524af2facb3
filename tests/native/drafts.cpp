// The ops of draft tokens and their draws, on any device.
#include "bindings/bindings.h"
#include "tests/native/arrays.h"
#include "tests/native/devices.h"
#include "tests/native/native.h"
#include "tests/native/sampling_case.h"

namespace py = pybind11;

namespace longcat {

namespace {

class DraftOps {
 public:
  explicit DraftOps(const std::string& device) : ops_(make_test_ops(device, 1)) {}

  // accept_drafts(), then extend_drafts() for each list of `drawn`: the draft tokens of a pass. plan: [n,
  // kPlannedDraftsSize]; the batch: token_ids, positions, sequence_idx [T], block_tables [sequences, width].
  // Returns the token lane, and a dict of lists behind each op.
  py::tuple rows(const Array<int32_t>& plan, const Array<int32_t>& sampled_ids, const Array<int32_t>& token_ids,
                 const Array<int32_t>& positions, const Array<int32_t>& sequence_idx,
                 const Array<int32_t>& block_tables, const Array<int32_t>& lane,
                 const std::vector<Array<int32_t>>& drawn) {
    const int64_t count = plan.shape(0), width = block_tables.shape(1);
    const ForwardBatch batch{.token_ids = on_device(token_ids),
                             .positions = on_device(positions),
                             .sequence_idx = on_device(sequence_idx),
                             .query_starts = {},
                             .block_tables = on_device(block_tables),
                             .num_real_tokens = {},
                             .prompt_chunks = {}};
    DraftRows all{.plan = on_device(plan),
                  .rows = empty({count}),
                  .next_positions = empty({count}),
                  .num_wanted = empty({count}),
                  .choice = empty({count}),
                  .batch = {.token_ids = empty({count}),
                            .positions = empty({count}),
                            .sequence_idx = empty({count}),
                            .query_starts = empty({count + 1}),
                            .block_tables = empty({count, width}),
                            .num_real_tokens = {},
                            .prompt_chunks = {}}};
    const Tensor device_lane = on_device(lane), ids = empty({count});
    py::list found;
    const auto record = [&] {
      py::dict d;
      d["rows"] = list(all.rows);
      d["next_positions"] = list(all.next_positions);
      d["num_wanted"] = list(all.num_wanted);
      d["choice"] = list(all.choice);
      d["token_ids"] = list(all.batch.token_ids);
      d["positions"] = list(all.batch.positions);
      d["block_tables"] = list(all.batch.block_tables.reshape({count * width}));
      d["ids"] = list(ids);
      found.append(d);
    };
    ops_->accept_drafts(all, ids, on_device(sampled_ids), device_lane, batch);
    record();
    int64_t depth = 0;
    for (const Array<int32_t>& last : drawn) {
      DraftRows part = all.first(last.shape(0));
      ops_->extend_drafts(part, ids.first(last.shape(0)), on_device(last), device_lane, ++depth);
      record();
    }
    return py::make_tuple(list(device_lane), found);
  }

  // Draws row i as params[choice[i]], which has histories[choice[i]]; 77 where it is not drawn.
  std::vector<int32_t> sample(const Array<float>& logits, const std::vector<py::dict>& params,
                              const std::vector<std::vector<int32_t>>& histories, int64_t num_plain,
                              const Array<int32_t>& choice) {
    const SamplingCase c(params, histories);
    const std::vector<SamplingRow> plain(c.rows.begin(), c.rows.begin() + num_plain);
    const std::vector<SamplingRow> choices(c.rows.begin() + num_plain, c.rows.end());
    Array<int32_t> unwritten(choice.size());
    std::fill_n(unwritten.mutable_data(), choice.size(), 77);
    const Tensor ids = on_device(unwritten);
    Buffer values(ops_->device(), logits.nbytes());
    ops_->device().copy_from_host(values.data(), logits.data(), logits.nbytes());
    ops_->set_sampling_rows(plain, choices);
    ops_->sample(ids, values.tensor(DType::f32, {logits.shape(0), logits.shape(1)}), on_device(c.lane_tensor()),
                 on_device(c.table_tensor()), on_device(choice));
    return list(ids);
  }

 private:
  Tensor empty(std::initializer_list<int64_t> shape) {
    int64_t values = 1;
    for (const int64_t extent : shape) values *= extent;
    return memory_.emplace_back(ops_->device(), values * 4).tensor(DType::i32, shape);
  }
  Tensor on_device(const Tensor& host) {
    const Buffer& memory = memory_.emplace_back(ops_->device(), host.num_bytes());
    ops_->device().copy_from_host(memory.data(), host.raw(), host.num_bytes());
    return host.ndim() == 1 ? memory.tensor(DType::i32, {host.size(0)})
                            : memory.tensor(DType::i32, {host.size(0), host.size(1)});
  }
  Tensor on_device(const Array<int32_t>& array) { return on_device(i32(array)); }
  std::vector<int32_t> list(const Tensor& tensor) {
    std::vector<int32_t> values(static_cast<size_t>(tensor.numel()));
    ops_->device().copy_to_host(values.data(), tensor.raw(), tensor.num_bytes());
    return values;
  }

  std::unique_ptr<Ops> ops_;
  std::vector<Buffer> memory_;
};

}  // namespace

void register_draft_ops(py::module_& testing) {
  py::class_<DraftOps>(testing, "DraftOps")
      .def(py::init<const std::string&>())
      .def("rows", &DraftOps::rows)
      .def("sample", &DraftOps::sample, py::arg("logits"), py::arg("params"), py::arg("histories"),
           py::arg("num_plain"), py::arg("choice"));
}

}  // namespace longcat
