// Binding of Communicator, of the MPI and TCP jobs that make one, and of the watch over its ranks.
#include "comm/communicator.h"

#include "bindings/bindings.h"
#include "comm/watch.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Returns a tensor view of a contiguous array. numpy has no bf16, so bf16 values are uint16 there.
Tensor tensor_of(const py::array& array) {
  if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("expected a contiguous array");
  const char kind = array.dtype().kind();
  const int64_t size = array.itemsize();
  const DType dtype = kind == 'f' && size == 4   ? DType::f32
                      : kind == 'u' && size == 2 ? DType::bf16
                      : kind == 'i' && size == 4 ? DType::i32
                      : kind == 'u' && size == 1
                          ? DType::u8
                          : throw std::invalid_argument("expected float32, uint16 (bf16), int32 or uint8");
  return Tensor(const_cast<void*>(array.data()), dtype, {array.size()});
}

void register_watch(py::module_& module) {
  py::class_<RankLoss>(module, "RankLoss")
      .def_readonly("rank", &RankLoss::rank)
      .def_property_readonly(
          "reason",  // may be cut within a character
          [](const RankLoss& self) {
            const auto size = static_cast<Py_ssize_t>(self.reason.size());
            return py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(self.reason.data(), size, "replace"));
          })
      .def_readonly("said", &RankLoss::said)
      .def_readonly("process", &RankLoss::process);

  const WatchOptions defaults;
  py::class_<Watch>(module, "Watch")
      .def(py::init([](const PyCommunicator& job, std::vector<std::string> hosts, double beat_s, double silence_s,
                       double connect_s, double own_words_s, double answer_s) {
             const WatchOptions options{.hosts = std::move(hosts),
                                        .beat_s = beat_s,
                                        .silence_s = silence_s,
                                        .connect_s = connect_s,
                                        .own_words_s = own_words_s,
                                        .answer_s = answer_s};
             const GilRelease nogil;
             return std::make_unique<Watch>(job.ranks, options);
           }),
           py::arg("job"), py::arg("hosts"), py::kw_only(), py::arg("beat_s") = defaults.beat_s,
           py::arg("silence_s") = defaults.silence_s, py::arg("connect_s") = defaults.connect_s,
           py::arg("own_words_s") = defaults.own_words_s, py::arg("answer_s") = defaults.answer_s)
      .def("wait",
           [](Watch& self) {
             const GilRelease nogil;
             return self.wait();
           })
      .def("pass_on", &Watch::pass_on)
      .def("fail",
           [](Watch& self, const std::string& reason) {
             const GilRelease nogil;
             self.fail(reason);
           })
      .def("close", &Watch::close)
      .def("wait_for_rank_0", [](Watch& self) {
        const GilRelease nogil;
        self.wait_for_rank_0();
      });
}

}  // namespace

void register_communicator(py::module_& module) {
  py::class_<PyCommunicator>(module, "Communicator")
      .def_property_readonly("rank", [](const PyCommunicator& self) { return self.ranks->rank(); })
      .def_property_readonly("size", [](const PyCommunicator& self) { return self.ranks->size(); })
      .def("split",
           [](const PyCommunicator& self, int color) {
             const GilRelease nogil;
             return PyCommunicator{self.ranks->split(color)};
           })
      .def("all_reduce",
           [](const PyCommunicator& self, const py::array& x) {
             const Tensor t = tensor_of(x);
             const GilRelease nogil;
             self.ranks->all_reduce(t);
           })
      .def("all_gather",
           [](const PyCommunicator& self, const py::array& out, const py::array& x) {
             const Tensor to = tensor_of(out), from = tensor_of(x);
             const GilRelease nogil;
             self.ranks->all_gather(to, from);
           })
      .def("all_to_all",
           [](const PyCommunicator& self, const py::array& out, const py::array& x) {
             const Tensor to = tensor_of(out), from = tensor_of(x);
             const GilRelease nogil;
             self.ranks->all_to_all(to, from);
           })
      .def("reduce_scatter",
           [](const PyCommunicator& self, const py::array& out, const py::array& x) {
             const Tensor to = tensor_of(out), from = tensor_of(x);
             const GilRelease nogil;
             self.ranks->reduce_scatter(to, from);
           })
      .def("broadcast",
           [](const PyCommunicator& self, const py::array& x, int root) {
             const Tensor t = tensor_of(x);
             const GilRelease nogil;
             self.ranks->broadcast(t, root);
           })
      .def("barrier",
           [](const PyCommunicator& self) {
             const GilRelease nogil;
             self.ranks->barrier();
           })
      .def("abort",
           [](const PyCommunicator& self, const std::string& reason) {
             const GilRelease nogil;
             self.ranks->abort(reason);
           })
      .def_property_readonly("failure", [](const PyCommunicator& self) { return self.ranks->failure(); });

  py::class_<MpiJob>(module, "MpiJob")
      .def(py::init(&join_mpi_job), py::arg("library"), py::call_guard<GilRelease>())
      .def("world",
           [](MpiJob& self) {
             const GilRelease nogil;
             return PyCommunicator{self.world->split(0)};
           })
      .def_readonly("library", &MpiJob::library)
      .def("finalize", &MpiJob::finalize, py::call_guard<GilRelease>());

  // token: 64 bytes, by which the ranks of a job know each other.
  py::class_<TcpJob>(module, "TcpJob")
      .def(py::init([](std::string host, int port, int rank, int size, bool one_machine, const py::bytes& token,
                       double timeout_s) {
             const TcpRendezvous rendezvous{.host = std::move(host),
                                            .port = port,
                                            .rank = rank,
                                            .size = size,
                                            .one_machine = one_machine,
                                            .token = token,
                                            .timeout_s = timeout_s};
             const GilRelease nogil;
             return std::make_unique<TcpJob>(rendezvous);
           }),
           py::arg("host"), py::arg("port"), py::arg("rank"), py::arg("size"), py::kw_only(), py::arg("one_machine"),
           py::arg("token"), py::arg("timeout_s") = 30.0)
      .def("world",
           [](TcpJob& self) {
             const GilRelease nogil;
             return PyCommunicator{self.world().split(0)};
           })
      .def_property_readonly("library", [](const TcpJob&) { return "TCP"; })
      .def("finalize", &TcpJob::finalize, py::call_guard<GilRelease>());

  register_watch(module);
}

}  // namespace longcat
