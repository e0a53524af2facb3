// The policy of draft tokens, without an engine or a clock.
#include "engine/draft_policy.h"

#include "bindings/bindings.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

void register_draft_policy(py::module_& testing) {
  py::class_<DraftAcceptance>(testing, "DraftAcceptance").def(py::init<>());
  py::class_<DraftPolicy>(testing, "DraftPolicy")
      .def(py::init([](int64_t most, bool adaptive) {
             return DraftPolicy({.method = Speculation::Method::mtp, .num_tokens = most, .adaptive = adaptive});
           }),
           py::arg("most"), py::arg("adaptive") = true)
      .def("begin_plan", &DraftPolicy::begin_plan, py::arg("num_sequences"), py::arg("decodes_only") = true)
      .def("num_drafts", &DraftPolicy::num_drafts, py::arg("sequence"))
      .def("record_verified", &DraftPolicy::record_verified, py::arg("sequence"), py::arg("num_drafts"),
           py::arg("num_accepted"))
      .def("record_step", &DraftPolicy::record_step, py::arg("num_sequences"), py::arg("num_verified"),
           py::arg("num_made"), py::arg("ms"))
      .def_property_readonly("acceptance", &DraftPolicy::acceptance)
      .def_property_readonly("cost", &DraftPolicy::cost)
      .def_property_readonly("num_drafts_now", &DraftPolicy::num_drafts_now);
}

}  // namespace longcat
