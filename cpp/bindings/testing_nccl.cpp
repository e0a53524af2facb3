// NCCL without GPUs: the library's loader, and a stand-in for the library that moves bytes between emulated devices.
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "bindings/bindings.h"
#include "comm/device_communicator.h"
#include "cuda/gpu_device.h"
#include "cuda/nccl_api.h"
#include "engine/engine.h"
#include "ops/backend.h"

namespace py = pybind11;

namespace longcat {

namespace {

// Ranks of a fake communicator are threads; memory of emulated devices is open between begin_kernel and end_kernel.
struct FakeComm {
  std::unique_ptr<Communicator> ranks;
  std::map<int, std::pair<const void*, size_t>> sends;
  std::map<int, std::pair<void*, size_t>> recvs;
  void* stream = nullptr;
};

std::mutex fake_mutex;
int64_t fake_next_id = 0;
std::map<int64_t, std::vector<std::unique_ptr<Communicator>>> fake_jobs;
thread_local FakeComm* in_group = nullptr;

template <class Work>
int on_stream(void* stream, Work&& work) {
  auto* device = static_cast<GpuDevice*>(stream);
  device->begin_kernel();
  try {
    work();
  } catch (const std::exception&) {
    device->end_kernel();
    return 6;
  }
  device->end_kernel();
  return 0;
}

Tensor bytes(const void* data, size_t count) {
  return Tensor(const_cast<void*>(data), DType::u8, {static_cast<int64_t>(count)});
}

FakeComm& of(void* comm) { return *static_cast<FakeComm*>(comm); }

const NcclApi fake_nccl{
    .get_version =
        [](int* version) {
          *version = 0;
          return 0;
        },
    .get_unique_id =
        [](NcclUniqueId* id) {
          const std::lock_guard lock(fake_mutex);
          *reinterpret_cast<int64_t*>(id->bytes) = ++fake_next_id;
          return 0;
        },
    .comm_init_rank =
        [](void** comm, int size, NcclUniqueId id, int rank) {
          const std::lock_guard lock(fake_mutex);
          auto& job = fake_jobs[*reinterpret_cast<int64_t*>(id.bytes)];
          if (job.empty()) job = make_thread_communicators(size);
          *comm = new FakeComm{.ranks = std::move(job[static_cast<size_t>(rank)]), .sends = {}, .recvs = {}};
          return 0;
        },
    .comm_destroy =
        [](void* comm) {
          delete &of(comm);
          return 0;
        },
    .comm_abort =
        [](void* comm) {
          of(comm).ranks->abort("aborted");
          return 0;
        },
    .all_gather =
        [](const void* x, void* out, size_t count, int, void* comm, void* stream) {
          return on_stream(stream, [&] {
            of(comm).ranks->all_gather(bytes(out, count * static_cast<size_t>(of(comm).ranks->size())),
                                       bytes(x, count));
          });
        },
    .all_reduce =
        [](const void* x, void* out, size_t count, int, int, void* comm, void* stream) {
          if (x != out) return 4;
          return on_stream(stream,
                           [&] { of(comm).ranks->all_reduce(Tensor(out, DType::i32, {static_cast<int64_t>(count)})); });
        },
    .broadcast =
        [](const void* x, void* out, size_t count, int, int root, void* comm, void* stream) {
          if (x != out) return 4;
          return on_stream(stream, [&] { of(comm).ranks->broadcast(bytes(out, count), root); });
        },
    .send =
        [](const void* x, size_t count, int, int peer, void* comm, void* stream) {
          in_group = &of(comm);
          in_group->stream = stream;
          in_group->sends[peer] = {x, count};
          return 0;
        },
    .recv =
        [](void* out, size_t count, int, int peer, void* comm, void*) {
          of(comm).recvs[peer] = {out, count};
          return 0;
        },
    .group_start = [] { return 0; },
    .group_end =
        [] {
          FakeComm& comm = *std::exchange(in_group, nullptr);
          return on_stream(comm.stream, [&] {
            std::vector<std::byte> sent, received;
            for (const auto& [peer, part] : comm.sends) {
              const auto* begin = static_cast<const std::byte*>(part.first);
              sent.insert(sent.end(), begin, begin + part.second);
            }
            received.resize(sent.size());
            comm.ranks->all_to_all(bytes(received.data(), received.size()), bytes(sent.data(), sent.size()));
            size_t at = 0;
            for (const auto& [peer, part] : comm.recvs) {
              std::memcpy(part.first, received.data() + at, part.second);
              at += part.second;
            }
            comm.sends.clear();
            comm.recvs.clear();
          });
        },
    .get_error_string = [](int) -> const char* { return "the stand-in for NCCL failed"; },
};

}  // namespace

void register_testing_nccl(py::module_& testing) {
  // (version, two unique ids as bytes) of the library that is found.
  testing.def("nccl", [] {
    const NcclApi& api = load_nccl();
    int version = 0;
    NcclUniqueId ids[2];
    if (const int result = api.get_version(&version)) throw Error(api.get_error_string(result));
    for (NcclUniqueId& id : ids)
      if (const int result = api.get_unique_id(&id)) throw Error(api.get_error_string(result));
    return py::make_tuple(version, py::bytes(ids[0].bytes, sizeof(ids[0].bytes)),
                          py::bytes(ids[1].bytes, sizeof(ids[1].bytes)));
  });
  testing.def("use_fake_nccl", [](EngineOptions& options) { options.nccl = &fake_nccl; });

  // Every collective of a communicator of `device`, on host arrays: {"all_reduce": ..., ...}. x: f32 values, [size, n].
  testing.def("device_collectives", [](const PyCommunicator& ranks, const std::string& device_name,
                                       py::array_t<float> values, bool narrow) {
    const std::unique_ptr<Ops> ops = make_ops(device_name, 1);
    Device& device = ops->device();
    const DType dtype = narrow ? DType::bf16 : DType::f32;
    const int64_t size = ranks.ranks->size(), count = values.size(), element = size_of(dtype);
    std::vector<std::byte> host(static_cast<size_t>(count * element));
    for (int64_t i = 0; i < count; ++i) {
      if (narrow) {
        reinterpret_cast<bf16*>(host.data())[i] = to_bf16(values.data()[i]);
      } else {
        reinterpret_cast<float*>(host.data())[i] = values.data()[i];
      }
    }
    std::map<std::string, std::vector<char>> found;
    {
      const GilRelease nogil;
      const auto comm = on_device(ranks.ranks->split(0), device, count * element, &fake_nccl);
      const Buffer x_buffer(device, count * element), out_buffer(device, size * count * element);
      const Tensor x = x_buffer.tensor(dtype, {count}), all = out_buffer.tensor(dtype, {size * count});
      const auto run = [&](const char* name, Tensor result, auto&& work) {
        device.copy_from_host(x.raw(), host.data(), x.num_bytes());
        device.wait(device.submit(work));
        std::vector<char>& data = found[name];
        data.resize(static_cast<size_t>(result.num_bytes()));
        device.copy_to_host(data.data(), result.raw(), result.num_bytes());
      };
      run("all_reduce", x, [&] { comm->all_reduce(x); });
      run("all_gather", all, [&] { comm->all_gather(all, x); });
      run("all_to_all", all.first(count), [&] { comm->all_to_all(all.first(count), x); });
      run("reduce_scatter", all.first(count / size), [&] { comm->reduce_scatter(all.first(count / size), x); });
      run("broadcast", x, [&] { comm->broadcast(x, static_cast<int>(size) - 1); });
      const Tensor ids = Tensor(x.raw(), DType::i32, {count * element / 4});
      run("all_reduce_i32", ids, [&] { comm->all_reduce(ids); });
    }
    std::map<std::string, py::bytes> result;
    for (const auto& [name, data] : found) result[name] = py::bytes(data.data(), data.size());
    return result;
  });
}

}  // namespace longcat
