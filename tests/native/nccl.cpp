// NCCL without GPUs, for tests: the library's loader, and communicators between emulated devices.
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "bindings/bindings.h"
#include "cuda/emulation/emulated_device.h"
#include "cuda/emulation/emulated_ops.h"
#include "cuda/nccl/nccl_communicator.h"
#include "cuda/nccl/peer_sums.h"
#include "tests/native/fake_nccl.h"
#include "tests/native/native.h"

namespace py = pybind11;

namespace longcat {

void register_nccl(py::module_& testing) {
  // Loads the installed library. Returns (version, two unique ids as bytes).
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
  testing.def("fail_fake_nccl", &fail_fake_nccl);
  testing.def("fail_emulated_peers", &fail_emulated_peers, py::arg("step"));

  // On one of two ranks, a sum over peer memory for which the other does not come. Returns whether it ended by stop().
  testing.def("stop_peer_sum", [](const PyCommunicator& ranks) {
    const GilRelease nogil;
    const std::unique_ptr<CudaOps> ops = make_emulated_cuda_ops(DType::bf16, false, false);
    GpuDevice& device = ops->device();
    const std::unique_ptr<Communicator> host = ranks.ranks->split(0);
    std::string refused;
    const auto sums = PeerSums::connect(*host, device, 4096, refused);
    std::atomic<bool> stopped = false;
    bool waited = true;
    if (host->rank() == 0) {
      const Buffer buffer(device, 4096);
      std::thread stops([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        stopped = true;
        sums->stop();
      });
      sums->all_reduce(buffer.tensor(DType::f32, {1000}));
      waited = stopped;
      stops.join();
    }
    return waited;
  });

  // Replays a recorded sum of `count` bf16 values `times` times, on ranks that all begin with 1. Returns the last value
  // of this rank: the number of ranks to the power of the replays.
  testing.def("replay_peer_sum", [](const PyCommunicator& ranks, int64_t count, int times) {
    const GilRelease nogil;
    const std::unique_ptr<CudaOps> ops = make_emulated_cuda_ops(DType::bf16, false, false);
    GpuDevice& device = ops->device();
    const auto comm = make_nccl_communicator(kFakeNccl, ranks.ranks->split(0), device, count * 2);
    const Buffer buffer(device, count * 2);
    std::vector<bf16> values(static_cast<size_t>(count), to_bf16(1));
    device.copy_from_host(buffer.data(), values.data(), count * 2);
    device.wait(device.submit([&] {
      const auto recording = device.record([&] { comm->all_reduce(buffer.tensor(DType::bf16, {count})); });
      for (int i = 0; i < times; ++i) comm->launch_recorded([&] { recording->launch(); });
    }));
    device.copy_to_host(values.data(), buffer.data(), count * 2);
    return to_float(values.back());
  });

  // Repeats an all-reduce on one rank until another thread aborts it after `abort_after_ms`; negative: another rank
  // aborts it. recorded: by launches of recorded work. Returns (the error that ended it, the error of a call after it,
  // misuses of the stand-in).
  testing.def("nccl_abort", [](const PyCommunicator& ranks, double abort_after_ms, bool recorded) {
    const GilRelease nogil;
    const std::unique_ptr<CudaOps> ops = make_emulated_cuda_ops(DType::bf16, false, false);
    GpuDevice& device = ops->device();
    auto comm = make_nccl_communicator(kFakeNccl, ranks.ranks->split(0), device, 4096);
    const Buffer buffer(device, 4096);
    const int rank = comm->rank();
    set_fake_nccl_call_time(std::chrono::milliseconds(5));
    std::atomic<int64_t> aborts_in_launches = 0;
    const auto sum = [&] { device.wait(device.submit([&] { comm->all_reduce(buffer.tensor(DType::f32, {1000})); })); };
    const auto launch = [&] {
      const int64_t before = num_fake_nccl_aborts(rank);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      aborts_in_launches += num_fake_nccl_aborts(rank) - before;
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
    set_fake_nccl_call_time({});
    return std::make_tuple(first, second, num_fake_nccl_misuses() + aborts_in_launches);
  });

  // Runs every collective between emulated devices, on host arrays. x: f32 values, [size, n]. Returns {"all_reduce":
  // ..., ...}, and "way": how they sum.
  testing.def("device_collectives", [](const PyCommunicator& ranks, py::array_t<float> values, bool narrow) {
    const std::unique_ptr<CudaOps> ops = make_emulated_cuda_ops(DType::bf16, false, false);
    GpuDevice& device = ops->device();
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
    std::string way;
    {
      const GilRelease nogil;
      const auto comm = make_nccl_communicator(kFakeNccl, ranks.ranks->split(0), device, count * element);
      way = comm->way_of_sums();
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
    found["way"] = std::vector<char>(way.begin(), way.end());
    std::map<std::string, py::bytes> result;
    for (const auto& [name, data] : found) result[name] = py::bytes(data.data(), data.size());
    return result;
  });
}

}  // namespace longcat
