// NCCL without GPUs: the library's loader, and a stand-in for the library that moves bytes between emulated devices.
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "bindings/bindings.h"
#include "comm/device_communicator.h"
#include "cuda/device/gpu_device.h"
#include "cuda/nccl/nccl_api.h"
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
  bool used = false;  // by a call that has not returned, and waits for nobody
  bool ended = false;
};

std::mutex fake_mutex;  // of all below, and of `used` and `ended`
int64_t fake_next_id = 0;
std::map<int64_t, std::vector<std::unique_ptr<Communicator>>> fake_jobs;
std::vector<std::unique_ptr<FakeComm>> fake_ended;
std::array<int, 16> fake_num_aborts{};       // by rank
int64_t fake_misuses = 0;                    // calls of a communicator that was ended, or ends while it is used
std::chrono::milliseconds fake_call_time{};  // of a call before it waits for others
std::atomic<int> fake_failing_rank = -1;
thread_local FakeComm* in_group = nullptr;

// What a call does before it waits for other ranks.
void use(FakeComm& comm) {
  const auto set_used = [&](bool used) {
    const std::lock_guard lock(fake_mutex);
    fake_misuses += comm.ended ? 1 : 0;
    comm.used = used;
    return fake_call_time;
  };
  std::this_thread::sleep_for(set_used(true));
  set_used(false);
}

int end(FakeComm* comm) {
  const std::lock_guard lock(fake_mutex);
  fake_misuses += comm->used || comm->ended ? 1 : 0;
  comm->ended = true;
  fake_ended.emplace_back(comm);
  return 0;
}

template <class Work>
int on_stream(FakeComm& comm, void* stream, Work&& work) {
  use(comm);
  if (comm.ranks->rank() == fake_failing_rank) return 3;
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
          if (!of(comm).ranks->failure().empty()) {  // it would wait for ranks that do not come
            const std::lock_guard lock(fake_mutex);
            ++fake_misuses;
          }
          return end(&of(comm));
        },
    .comm_abort =
        [](void* comm) {
          {
            const std::lock_guard lock(fake_mutex);
            ++fake_num_aborts[static_cast<size_t>(of(comm).ranks->rank())];
          }
          of(comm).ranks->abort("aborted");
          return end(&of(comm));
        },
    .all_gather =
        [](const void* x, void* out, size_t count, int, void* comm, void* stream) {
          return on_stream(of(comm), stream, [&] {
            of(comm).ranks->all_gather(bytes(out, count * static_cast<size_t>(of(comm).ranks->size())),
                                       bytes(x, count));
          });
        },
    .all_reduce =
        [](const void* x, void* out, size_t count, int, int, void* comm, void* stream) {
          if (x != out) return 4;
          return on_stream(of(comm), stream,
                           [&] { of(comm).ranks->all_reduce(Tensor(out, DType::i32, {static_cast<int64_t>(count)})); });
        },
    .broadcast =
        [](const void* x, void* out, size_t count, int, int root, void* comm, void* stream) {
          if (x != out) return 4;
          return on_stream(of(comm), stream, [&] { of(comm).ranks->broadcast(bytes(out, count), root); });
        },
    .send =
        [](const void* x, size_t count, int, int peer, void* comm, void* stream) {
          use(of(comm));
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
          return on_stream(comm, comm.stream, [&] {
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

  // From now on calls of that rank fail, and those of the others wait for it; -1: none.
  testing.def("fail_fake_nccl", [](int rank) { fake_failing_rank = rank; });

  // Sums on one rank until `abort_after_ms`, when another thread aborts; negative: another rank does. recorded: in
  // launches of recorded work. (the error that ends it, the one of a call after it, misuses of the stand-in).
  testing.def("nccl_abort", [](const PyCommunicator& ranks, double abort_after_ms, bool recorded) {
    const GilRelease nogil;
    const std::unique_ptr<Ops> ops = make_ops("cuda-emulated", 1);
    Device& device = ops->device();
    auto comm = on_device(ranks.ranks->split(0), device, 4096, &fake_nccl);
    const Buffer buffer(device, 4096);
    const auto rank = static_cast<size_t>(comm->rank());
    const auto count = [&](const auto& value) {
      const std::lock_guard lock(fake_mutex);
      return static_cast<int64_t>(value);
    };
    {
      const std::lock_guard lock(fake_mutex);
      fake_call_time = std::chrono::milliseconds(5);
    }
    std::atomic<int64_t> aborts_in_launches = 0;
    const auto sum = [&] { device.wait(device.submit([&] { comm->all_reduce(buffer.tensor(DType::f32, {1000})); })); };
    const auto launch = [&] {
      const int64_t before = count(fake_num_aborts[rank]);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      aborts_in_launches += count(fake_num_aborts[rank]) - before;
    };
    const auto reason_of_end = [&](bool once) -> std::string {
      try {
        do {
          recorded ? comm->launch_recorded(launch) : sum();
        } while (!once);
      } catch (const Error& error) {
        return error.what();
      }
      return "none";
    };
    std::thread aborting([&] {
      if (abort_after_ms < 0) return;
      std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(abort_after_ms));
      comm->abort("enough");
    });
    const std::string first = reason_of_end(false);
    aborting.join();
    const std::string second = reason_of_end(true);
    comm.reset();
    {
      const std::lock_guard lock(fake_mutex);
      fake_call_time = {};
    }
    return std::make_tuple(first, second, count(fake_misuses) + aborts_in_launches);
  });

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
