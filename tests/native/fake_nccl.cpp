#include "tests/native/fake_nccl.h"

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/device/gpu_device.h"
#include "tests/native/thread_communicators.h"

namespace longcat {

namespace {

// A communicator of the stand-in. Its ranks are threads. They access memory of emulated devices between begin_kernel
// and end_kernel.
struct FakeComm {
  std::unique_ptr<Communicator> ranks;
  std::map<int, std::pair<const void*, size_t>> sends;
  std::map<int, std::pair<void*, size_t>> recvs;
  void* stream = nullptr;
  bool used = false;  // a call runs that does not wait for other ranks
  bool ended = false;
};

std::mutex fake_mutex;  // guards everything below, and FakeComm::used and ended
int64_t fake_next_id = 0;
std::map<int64_t, std::vector<std::unique_ptr<Communicator>>> fake_jobs;
std::vector<std::unique_ptr<FakeComm>> fake_ended;
std::array<int, 16> fake_num_aborts{};       // one for each rank
int64_t fake_misuses = 0;                    // calls on an ended communicator, and ends of a communicator in use
std::chrono::milliseconds fake_call_time{};  // time that a call takes before it waits for other ranks
std::atomic<int> fake_failing_rank = -1;
thread_local FakeComm* in_group = nullptr;

// The part of a call before it waits for other ranks.
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

}  // namespace

const NcclApi kFakeNccl{
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
          if (!of(comm).ranks->failure().empty()) {  // the call would wait for ranks that do not come
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

void fail_fake_nccl(int rank) { fake_failing_rank = rank; }

void set_fake_nccl_call_time(std::chrono::milliseconds time) {
  const std::lock_guard lock(fake_mutex);
  fake_call_time = time;
}

int64_t num_fake_nccl_aborts(int rank) {
  const std::lock_guard lock(fake_mutex);
  return fake_num_aborts[static_cast<size_t>(rank)];
}

int64_t num_fake_nccl_misuses() {
  const std::lock_guard lock(fake_mutex);
  return fake_misuses;
}

}  // namespace longcat
