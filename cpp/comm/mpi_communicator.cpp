// Ranks as processes of an MPI job, by a plugin for the MPI library at hand.
#include <dlfcn.h>

#include <atomic>
#include <limits>
#include <mutex>

#include "comm/communicator.h"
#include "comm/mpi_api.h"

namespace longcat {

namespace {

// Of this process: whether the job has failed.
struct Job {
  std::atomic<bool> failed = false;
  std::mutex mutex;
  std::string failure;
};

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(const MpiApi& api, void* comm, std::shared_ptr<Job> job)
      : api_(api), comm_(comm), job_(std::move(job)), rank_(api.rank(comm)), size_(api.size(comm)) {}
  ~MpiCommunicator() override { api_.free(comm_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Communicator> split(int color) override {
    barrier();  // the split itself cannot be given up
    void* part = nullptr;
    check(api_.split(comm_, color, &part));
    return std::make_unique<MpiCommunicator>(api_, part, job_);
  }

  void all_gather(Tensor out, Tensor x) override {
    LC_CHECK(out.numel() == x.numel() * size_);
    check(api_.all_gather(comm_, out.raw(), x.raw(), block_bytes(out, x, 1), should_stop, job_.get()));
  }
  void all_to_all(Tensor out, Tensor x) override {
    LC_CHECK(out.numel() == x.numel());
    check(api_.all_to_all(comm_, out.raw(), x.raw(), block_bytes(out, x, size_), should_stop, job_.get()));
  }
  void broadcast(Tensor x, int root) override {
    check(api_.broadcast(comm_, x.raw(), block_bytes(x, x, 1), root, should_stop, job_.get()));
  }
  void barrier() override { check(api_.barrier(comm_, should_stop, job_.get())); }

  void abort(const std::string& reason) noexcept override {
    const std::lock_guard lock(job_->mutex);
    if (!job_->failed) job_->failure = reason;
    job_->failed = true;
  }
  std::string failure() const override {
    const std::lock_guard lock(job_->mutex);
    return job_->failure;
  }

 private:
  static int should_stop(void* job) { return static_cast<Job*>(job)->failed ? 1 : 0; }

  static int64_t block_bytes(Tensor out, Tensor x, int num_blocks) {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.dtype() == x.dtype() && x.numel() % num_blocks == 0);
    const int64_t bytes = x.num_bytes() / num_blocks;
    LC_CHECK(bytes <= std::numeric_limits<int>::max(), bytes, " bytes at once");
    return bytes;
  }

  void check(const char* error) const {
    if (!error) return;
    const std::lock_guard lock(job_->mutex);
    throw Error(job_->failed ? job_->failure : str_cat("[mpi] rank ", rank_, ": ", error));
  }

  const MpiApi& api_;
  void* comm_;
  std::shared_ptr<Job> job_;
  int rank_, size_;
};

// Loaded once, never unloaded.
const MpiApi& load(const std::string& plugin) {
  // Global: Open MPI's own components look for its symbols there.
  void* library = ::dlopen(plugin.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw Error(str_cat("[mpi] ", plugin, " cannot be loaded: ", ::dlerror()));
  const auto get = reinterpret_cast<GetMpiApi>(::dlsym(library, kMpiApiSymbol));
  if (!get || get()->version != MpiApi::kVersion)
    throw Error(str_cat("[mpi] ", plugin, " is no plugin of this version of longcat"));
  return *get();
}

}  // namespace

MpiJob::MpiJob(const std::string& plugin) : api_(load(plugin)) {
  void* comm = nullptr;
  if (const char* error = api_.init(&comm)) throw Error(str_cat("[mpi] cannot be started: ", error));
  char text[256] = {};
  api_.describe(text, sizeof(text));
  library_ = text;
  world_ = std::make_unique<MpiCommunicator>(api_, comm, std::make_shared<Job>());
}

void MpiJob::finalize() {
  world_->barrier();  // which can be given up
  if (const char* error = api_.finalize()) throw Error(str_cat("[mpi] cannot be ended: ", error));
}

}  // namespace longcat
