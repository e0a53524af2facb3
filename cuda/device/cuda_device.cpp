#include "cuda/device/cuda_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "cuda/device/check.h"
#include "cuda/device/graph_sizes.h"
#include "ops/backend.h"

namespace longcat {

namespace {

constexpr int64_t kRingBytes = int64_t{16} << 20;  // [bytes] for block tables, sampling rows and masks of a few steps
constexpr int64_t kRingAlignment = 256;
constexpr int64_t kHugePage = int64_t{2} << 20;

constexpr int64_t rounded_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

class Graph final : public Recording {
 public:
  Graph(GpuDevice& device, cudaGraph_t graph) : device_(device) {
    const cudaError_t counted = cudaGraphGetNodes(graph, nullptr, &num_nodes_);
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    CUDA_CHECK(status);
    CUDA_CHECK(counted);
  }
  ~Graph() override {
    cudaStreamSynchronize(static_cast<cudaStream_t>(device_.stream()));  // a launch may still run
    cudaGraphExecDestroy(executable_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch() override {
    device_.end_overlap();
    CUDA_CHECK(cudaGraphLaunch(executable_, static_cast<cudaStream_t>(device_.stream())));
  }
  int64_t num_nodes() const override { return static_cast<int64_t>(num_nodes_); }

 private:
  GpuDevice& device_;
  size_t num_nodes_ = 0;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

void cuda_failed(cudaError_t status, const char* file, int line, const char* expression) {
  cudaGetLastError();  // clears the error, so that the next caller does not get it
  const char* name = std::strrchr(file, '/');
  const std::string message = str_cat("[cuda] ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ") at ",
                                      name ? name + 1 : file, ":", line, ": ", expression);
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw DeviceFailure(message);
}

void check_launch(cudaStream_t stream) {
  static const bool synchronise = [] {
    const char* value = std::getenv("LONGCAT_SYNC");
    return value && *value == '1';
  }();
  CUDA_CHECK(cudaGetLastError());
  if (!synchronise) return;
  cudaStreamCaptureStatus capturing;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (capturing == cudaStreamCaptureStatusNone) CUDA_CHECK(cudaStreamSynchronize(stream));
}

int CudaDevice::count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

CudaDevice::CudaDevice(int device_idx) : device_idx_(device_idx) {
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess || count == 0) {
    cudaGetLastError();
    throw Error(str_cat("[device] no CUDA device can be used here (",
                        status == cudaSuccess ? "none is present" : cudaGetErrorString(status),
                        "): use device=\"cpu\""));
  }
  if (device_idx >= count)
    throw Error(str_cat("[device] found device=\"cuda:", device_idx, "\"; expected an index below ", count));
  make_current();
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device_idx));
    return value;
  };
  num_multiprocessors_ = attribute(cudaDevAttrMultiProcessorCount);
  compute_capability_ =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  shared_bytes_ = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  reads_pageable_memory_ = attribute(cudaDevAttrPageableMemoryAccess) != 0;
  reads_registered_memory_ = attribute(cudaDevAttrCanUseHostPointerForRegisteredMem) != 0;
  if (compute_capability_ < 80)
    throw Error(str_cat("[device] ", name(), " has compute capability ", compute_capability_ / 10, ".",
                        compute_capability_ % 10, "; expected at least 8.0. Use device=\"cpu\""));
}

// Delegates to a complete constructor, so that the destructor frees what exists when a later step throws.
CudaDevice::CudaDevice(int device_idx, double memory_share, int num_communicators) : CudaDevice(device_idx) {
  CUDA_CHECK(cudaStreamCreateWithFlags(&main_stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaStreamCreateWithFlags(&branch_stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaEventCreateWithFlags(&fork_event_, cudaEventDisableTiming));
  CUDA_CHECK(cudaEventCreateWithFlags(&join_event_, cudaEventDisableTiming));
  CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&ring_), kRingBytes, cudaHostAllocPortable));

  size_t free_bytes = 0, total_bytes = 0;
  CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  const int64_t arena_size = arena_bytes(static_cast<int64_t>(free_bytes), memory_share, num_communicators);
  if (cudaMalloc(reinterpret_cast<void**>(&memory_), static_cast<size_t>(arena_size)) != cudaSuccess) {
    cudaGetLastError();
    throw OutOfMemory(str_cat("[cuda] ", name(), ": cannot allocate ", arena_size, " of ", free_bytes,
                              " free bytes: lower gpu_memory_utilization"));
  }
  arena_ = Arena(arena_size);
}

CudaDevice::~CudaDevice() {
  cudaSetDevice(device_idx_);
  if (cudaDeviceSynchronize() != cudaSuccess)
    std::fprintf(stderr, "longcat: [cuda] work of %s had failed when it was closed\n", name().c_str());
  for (const Ticket& ticket : tickets_) cudaEventDestroy(ticket.event);
  for (const cudaEvent_t event : free_events_) cudaEventDestroy(event);
  cudaFreeHost(ring_);
  cudaFree(memory_);
  for (const cudaEvent_t event : {fork_event_, join_event_})
    if (event) cudaEventDestroy(event);
  for (const cudaStream_t stream : {branch_stream_, main_stream_})
    if (stream) cudaStreamDestroy(stream);
}

// The CUDA runtime keeps the current device per thread.
void CudaDevice::make_current() const { CUDA_CHECK(cudaSetDevice(device_idx_)); }

int64_t CudaDevice::default_cache_bytes(int64_t) const {
  return std::max(arena_.largest_free() - kGpuStepBytes, int64_t{0});
}

void* CudaDevice::allocate(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  const int64_t offset = arena_.allocate(bytes);
  if (offset < 0)
    throw OutOfMemory(str_cat("[cuda] ", name(), " cannot allocate ", bytes, " bytes: ", arena_.used_bytes(), " of ",
                              arena_.bytes(), " are in use, the largest free range has ", arena_.largest_free()));
  make_current();
  CUDA_CHECK(cudaMemsetAsync(memory_ + offset, 0, static_cast<size_t>(bytes), no_kernel()));
  CUDA_CHECK(cudaStreamSynchronize(main_stream_));
  return memory_ + offset;
}

// Work in flight may still use the range. The next owner clears it on the same stream, after that work.
void CudaDevice::free(void* data, int64_t bytes) noexcept { arena_.free(static_cast<char*>(data) - memory_, bytes); }

// Anonymous memory on huge pages, pinned for the device. A table of tens of GB then takes few entries of the GPU's page
// tables, and kernels can read its rows by UVA.
void* CudaDevice::allocate_host(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  const int64_t size = rounded_up(bytes, bytes >= kHugePage ? kHugePage : 4096);
  const int64_t spare = bytes >= kHugePage ? kHugePage : 0;  // room for alignment
  void* mapping =
      ::mmap(nullptr, static_cast<size_t>(size + spare), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw OutOfMemory(str_cat("[cuda] cannot allocate ", bytes, " bytes of host memory"));
  char* data = static_cast<char*>(mapping);
  if (spare > 0) {
    char* aligned = reinterpret_cast<char*>(rounded_up(reinterpret_cast<int64_t>(data), kHugePage));
    if (aligned > data) ::munmap(data, static_cast<size_t>(aligned - data));
    if (char* end = data + size + spare; aligned + size < end)
      ::munmap(aligned + size, static_cast<size_t>(end - (aligned + size)));
    data = aligned;
    ::madvise(data, static_cast<size_t>(size), MADV_HUGEPAGE);
  }
  make_current();
  if (const cudaError_t status =
          cudaHostRegister(data, static_cast<size_t>(size), cudaHostRegisterPortable | cudaHostRegisterMapped);
      status != cudaSuccess) {
    cudaGetLastError();
    ::munmap(data, static_cast<size_t>(size));
    return allocate_by_driver(size, status);
  }
  pinned_[data] = {size, true};
  return data;
}

// Where our own pages cannot be pinned, the driver may still pin memory of its own, with pages of its choice.
void* CudaDevice::allocate_by_driver(int64_t bytes, cudaError_t refused) {
  void* data = nullptr;
  if (cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess) {
    cudaGetLastError();
    throw OutOfMemory(str_cat("[cuda] ", bytes, " bytes of host memory cannot be pinned (", cudaGetErrorString(refused),
                              "): free memory, or raise the limit of locked memory (ulimit -l)"));
  }
  if (bytes >= kHugePage)
    std::fprintf(stderr, "longcat: [cuda] %lld bytes are not on huge pages (%s): reads of tables may be slower\n",
                 static_cast<long long>(bytes), cudaGetErrorString(refused));
  std::memset(data, 0, static_cast<size_t>(bytes));
  pinned_[static_cast<const char*>(data)] = {bytes, false};
  return data;
}

void CudaDevice::free_host(void* data, int64_t) noexcept {
  const auto range = pinned_.find(static_cast<const char*>(data));
  cudaSetDevice(device_idx_);
  cudaDeviceSynchronize();  // work in flight may still read it
  if (range == pinned_.end()) return;
  if (range->second.registered) {
    cudaHostUnregister(data);
    ::munmap(data, static_cast<size_t>(range->second.bytes));
  } else {
    cudaFreeHost(data);
  }
  pinned_.erase(range);
}

bool CudaDevice::is_pinned(const void* data, int64_t bytes) const {
  const char* begin = static_cast<const char*>(data);
  auto range = pinned_.upper_bound(begin);
  if (range == pinned_.begin()) return false;
  --range;
  return begin + bytes <= range->first + range->second.bytes;
}

void CudaDevice::copy_from_host(void* device_data, const void* host_data, int64_t bytes) {
  if (bytes <= 0) return;
  make_current();
  CUDA_CHECK(cudaMemcpyAsync(device_data, host_data, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, no_kernel()));
  CUDA_CHECK(cudaStreamSynchronize(main_stream_));
}

void CudaDevice::copy_to_host(void* host_data, const void* device_data, int64_t bytes) {
  if (bytes <= 0) return;
  make_current();
  CUDA_CHECK(cudaMemcpyAsync(host_data, device_data, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, no_kernel()));
  CUDA_CHECK(cudaStreamSynchronize(main_stream_));
}

int64_t CudaDevice::submit(std::function<void()> work) {
  make_current();
  Ticket ticket{.number = ++last_ticket_, .event = nullptr, .ring_bytes = 0, .late_copies = {}, .failure = {}};
  if (free_events_.empty()) {
    CUDA_CHECK(cudaEventCreateWithFlags(&ticket.event, cudaEventDisableTiming));
  } else {
    ticket.event = free_events_.back();
    free_events_.pop_back();
  }
  current_ = &ticket;
  try {
    work();
  } catch (...) {
    ticket.failure = std::current_exception();
    in_branch_ = false;  // the branch's remaining work must precede this ticket's event
    if (cudaEventRecord(join_event_, branch_stream_) == cudaSuccess) cudaStreamWaitEvent(no_kernel(), join_event_, 0);
  }
  current_ = nullptr;
  if (const cudaError_t status = cudaEventRecord(ticket.event, no_kernel()); status != cudaSuccess && !ticket.failure)
    try {
      cuda_failed(status, __FILE__, __LINE__, "cudaEventRecord");
    } catch (...) {
      ticket.failure = std::current_exception();
    }
  tickets_.push_back(std::move(ticket));
  return last_ticket_;
}

// Waits for the oldest ticket in flight, makes its late copies and returns its part of the ring.
void CudaDevice::complete_oldest() {
  Ticket ticket = std::move(tickets_.front());
  tickets_.pop_front();
  const cudaError_t status = cudaEventSynchronize(ticket.event);
  free_events_.push_back(ticket.event);
  ring_used_ -= ticket.ring_bytes;
  if (status != cudaSuccess && !ticket.failure) try {
      cuda_failed(status, __FILE__, __LINE__, "cudaEventSynchronize");
    } catch (...) {
      ticket.failure = std::current_exception();
    }
  if (ticket.failure) {
    failures_[ticket.number] = ticket.failure;
    return;
  }
  for (const LateCopy& late : ticket.late_copies) std::memcpy(late.to, late.from, static_cast<size_t>(late.bytes));
}

void CudaDevice::wait(int64_t ticket) {
  make_current();
  while (!tickets_.empty() && tickets_.front().number <= ticket) complete_oldest();
  if (const auto failure = failures_.extract(ticket)) std::rethrow_exception(failure.mapped());
}

// The ring is taken and returned in order, so its free part is one range from ring_next_ on, around the end.
char* CudaDevice::take_from_ring(int64_t bytes) {
  bytes = rounded_up(bytes, kRingAlignment);
  if (bytes > kRingBytes / 4 || !current_) return nullptr;
  const int64_t skipped = ring_next_ + bytes > kRingBytes ? kRingBytes - ring_next_ : 0;  // [bytes] left at the end
  while (ring_used_ + skipped + bytes > kRingBytes && !tickets_.empty()) complete_oldest();
  if (ring_used_ + skipped + bytes > kRingBytes) return nullptr;  // this submit alone fills the ring
  if (skipped > 0) ring_next_ = 0;
  char* data = ring_ + ring_next_;
  ring_next_ += bytes;
  ring_used_ += skipped + bytes;
  current_->ring_bytes += skipped + bytes;
  return data;
}

// By LONGCAT_OVERLAP=0 a user finds out whether a failure comes from overlapping kernels.
bool CudaDevice::next_kernel_overlaps() {
  static const bool allowed = [] {
    const char* value = std::getenv("LONGCAT_OVERLAP");
    return !value || *value != '0';
  }();
  // The machine code for these alone waits for the prior grid; others run that of 8.0.
  const bool waits = compute_capability_ == 90 || compute_capability_ / 10 == 12;
  return std::exchange(behind_kernel_[in_branch_], true) && allowed && waits;
}

void CudaDevice::upload(void* device_data, const void* host_data, int64_t bytes) {
  if (bytes <= 0) return;
  const void* from = host_data;
  if (!is_pinned(host_data, bytes)) {
    char* staged = take_from_ring(bytes);
    if (!staged) return copy_from_host(device_data, host_data, bytes);
    std::memcpy(staged, host_data, static_cast<size_t>(bytes));
    from = staged;
  }
  CUDA_CHECK(cudaMemcpyAsync(device_data, from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, no_kernel()));
}

void CudaDevice::download(void* host_data, const void* device_data, int64_t bytes) {
  if (bytes <= 0) return;
  void* to = host_data;
  if (!is_pinned(host_data, bytes)) {
    char* staged = take_from_ring(bytes);
    if (!staged) return copy_to_host(host_data, device_data, bytes);
    current_->late_copies.push_back({host_data, staged, bytes});
    to = staged;
  }
  CUDA_CHECK(cudaMemcpyAsync(to, device_data, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, no_kernel()));
}

void CudaDevice::copy(void* to, const void* from, int64_t bytes) {
  if (bytes <= 0) return;
  CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, no_kernel()));
}

std::unique_ptr<Recording> CudaDevice::record(std::function<void()> work) {
  LC_CHECK(!in_branch_);
  // Relaxed: a kernel's first launch may happen here, which loads it. The other modes may refuse that.
  CUDA_CHECK(cudaStreamBeginCapture(no_kernel(), cudaStreamCaptureModeRelaxed));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {  // an open capture would make every later call fail
    in_branch_ = false;
    cudaStreamEndCapture(no_kernel(), &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  CUDA_CHECK(cudaStreamEndCapture(no_kernel(), &graph));
  return std::make_unique<Graph>(*this, graph);
}

int64_t CudaDevice::padded_rows(int64_t rows) const { return graph_rows(rows); }

void CudaDevice::begin_branch() {
  CUDA_CHECK(cudaEventRecord(fork_event_, main_stream_));
  CUDA_CHECK(cudaStreamWaitEvent(branch_stream_, fork_event_, 0));
  in_branch_ = true;
  end_overlap();
}

void CudaDevice::end_branch() {
  CUDA_CHECK(cudaEventRecord(join_event_, branch_stream_));
  in_branch_ = false;
}

void CudaDevice::join_branch() { CUDA_CHECK(cudaStreamWaitEvent(no_kernel(), join_event_, 0)); }

}  // namespace longcat
