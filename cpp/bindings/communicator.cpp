// Binding of Communicator, and of the MPI and TCP jobs that make one.
#include "comm/communicator.h"

#include "bindings/bindings.h"

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
      .def(py::init(&join_mpi_job), py::arg("library"), py::call_guard<py::gil_scoped_release>())
      .def("world",
           [](MpiJob& self) {
             const GilRelease nogil;
             return PyCommunicator{self.world->split(0)};
           })
      .def_readonly("library", &MpiJob::library)
      .def("finalize", &MpiJob::finalize, py::call_guard<py::gil_scoped_release>());

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
      .def("finalize", &TcpJob::finalize, py::call_guard<py::gil_scoped_release>());
}

}  // namespace longcat
