// Ranks as processes of an MPI job. The MPI library is opened at run time: longcat is built without one.
//
// Collectives do not block inside MPI: they are started and then polled. So a rank whose peers are gone can give up. A
// follower rank, which waits for rank 0 between requests, leaves its core to others.
#include <dlfcn.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <limits>

#include "comm/communicator.h"
#include "comm/failure.h"
#include "comm/mpi_abi.h"

namespace longcat {

namespace {

// An opened library, never closed.
class Library {
 public:
  explicit Library(const std::string& name) : name_(name) {
    // Global: Open MPI's own components look for its symbols there.
    handle_ = ::dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (!handle_) throw Error(str_cat("[mpi] ", name, " cannot be loaded: ", ::dlerror()));
  }

  void* find(const char* symbol) const { return ::dlsym(handle_, symbol); }  // null: it has none

  template <class Function>
  void get(Function*& function, const char* symbol) const {
    function = reinterpret_cast<Function*>(find(symbol));
    if (!function) throw Error(str_cat("[mpi] ", name_, " has no ", symbol, ": expected an MPI 3 library"));
  }

 private:
  std::string name_;
  void* handle_;
};

// The calls that ranks need.
template <class Handle>
struct Mpi {
  Mpi(const Library& library, const MpiConstants<Handle>& its) : constants(its) {
    library.get(init_thread, "MPI_Init_thread");
    library.get(initialized, "MPI_Initialized");
    library.get(finalized, "MPI_Finalized");
    library.get(query_thread, "MPI_Query_thread");
    library.get(finalize, "MPI_Finalize");
    library.get(get_library_version, "MPI_Get_library_version");
    library.get(error_string, "MPI_Error_string");
    library.get(comm_dup, "MPI_Comm_dup");
    library.get(comm_rank, "MPI_Comm_rank");
    library.get(comm_size, "MPI_Comm_size");
    library.get(comm_split, "MPI_Comm_split");
    library.get(comm_set_errhandler, "MPI_Comm_set_errhandler");
    library.get(iallgather, "MPI_Iallgather");
    library.get(ialltoall, "MPI_Ialltoall");
    library.get(ibcast, "MPI_Ibcast");
    library.get(ibarrier, "MPI_Ibarrier");
    library.get(test, "MPI_Test");
  }

  MpiConstants<Handle> constants;
  int (*init_thread)(int* argc, char*** argv, int required, int* provided);
  int (*initialized)(int* flag);
  int (*finalized)(int* flag);
  int (*query_thread)(int* provided);
  int (*finalize)();
  int (*get_library_version)(char* text, int* length);
  int (*error_string)(int code, char* text, int* length);
  int (*comm_dup)(Handle comm, Handle* out);
  int (*comm_rank)(Handle comm, int* rank);
  int (*comm_size)(Handle comm, int* size);
  int (*comm_split)(Handle comm, int color, int key, Handle* out);
  int (*comm_set_errhandler)(Handle comm, Handle handler);
  int (*iallgather)(const void* x, int count, Handle type, void* out, int out_count, Handle out_type, Handle comm,
                    Handle* request);
  int (*ialltoall)(const void* x, int count, Handle type, void* out, int out_count, Handle out_type, Handle comm,
                   Handle* request);
  int (*ibcast)(void* x, int count, Handle type, int root, Handle comm, Handle* request);
  int (*ibarrier)(Handle comm, Handle* request);
  int (*test)(Handle* request, int* done, void* status);
};

// What the communicators of this process share.
template <class Handle>
struct Job {
  explicit Job(const Mpi<Handle>& its) : mpi(its) {}

  // Throws Error when an MPI call has failed.
  void check(int code) {
    if (code == 0) return;  // MPI_SUCCESS
    char text[kMpiMaxText] = {};
    int length = 0;
    mpi.error_string(code, text, &length);
    fail(text);
  }
  // Throws Error with the reason of an abort, else with `error`.
  [[noreturn]] void fail(const std::string& error) const {
    failure.check();
    throw Error(str_cat("[mpi] ", where, ": ", error));
  }

  const Mpi<Handle> mpi;
  std::string where = "MPI cannot be started";  // for messages; the rank, once it is known
  Failure failure;
};

template <class Handle>
class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(std::shared_ptr<Job<Handle>> job, Handle comm) : job_(std::move(job)), mpi_(job_->mpi), comm_(comm) {
    job_->check(mpi_.comm_set_errhandler(comm_, mpi_.constants.errors_return));
    job_->check(mpi_.comm_rank(comm_, &rank_));
    job_->check(mpi_.comm_size(comm_, &size_));
  }
  // MPI_Comm_free waits for all ranks, which may be gone: the communicator is small, and the job is over soon.
  ~MpiCommunicator() override = default;

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Communicator> split(int color) override {
    barrier();  // the split itself cannot be given up
    job_->failure.check();
    Handle part;
    job_->check(mpi_.comm_split(comm_, color, rank_, &part));
    return std::make_unique<MpiCommunicator>(job_, part);
  }

  void all_gather(Tensor out, Tensor x) override {
    LC_CHECK(out.numel() == x.numel() * size_);
    const int bytes = block_bytes(out, x, 1);
    run(mpi_.iallgather, x.raw(), bytes, mpi_.constants.byte, out.raw(), bytes, mpi_.constants.byte);
  }
  void all_to_all(Tensor out, Tensor x) override {
    LC_CHECK(out.numel() == x.numel());
    const int bytes = block_bytes(out, x, size_);
    run(mpi_.ialltoall, x.raw(), bytes, mpi_.constants.byte, out.raw(), bytes, mpi_.constants.byte);
  }
  void broadcast(Tensor x, int root) override {
    run(mpi_.ibcast, x.raw(), block_bytes(x, x, 1), mpi_.constants.byte, root);
  }
  void barrier() override { run(mpi_.ibarrier); }

  void abort(const std::string& reason) noexcept override { job_->failure.set(reason); }
  std::string failure() const override { return job_->failure.reason(); }

 private:
  static int block_bytes(Tensor out, Tensor x, int num_blocks) {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.dtype() == x.dtype() && x.numel() % num_blocks == 0);
    const int64_t bytes = x.num_bytes() / num_blocks;
    LC_CHECK(bytes <= std::numeric_limits<int>::max(), bytes, " bytes at once");
    return static_cast<int>(bytes);
  }

  template <class Collective, class... Arguments>
  void run(Collective begin, Arguments... arguments) {
    job_->failure.check();
    Handle request;
    job_->check(begin(arguments..., comm_, &request));
    wait(request);
  }

  // Returns when the request is done. After a failure this process makes no call of MPI. A request cannot be freed, but
  // its buffers may be: any call would write to them what arrives late. Polls at first, since a step has a hundred sums
  // a few microseconds apart. Then lets other threads run, and then sleeps for a millisecond at most.
  void wait(Handle request) {
    constexpr int kBusy = 2000, kYield = 20000;
    for (int round = 0;; ++round) {
      job_->failure.check();
      int done = 0;
      job_->check(mpi_.test(&request, &done, mpi_.constants.status_ignore));
      if (done) return;
      if (round < kBusy) continue;
      if (round < kYield) {
        sched_yield();
      } else {
        const timespec pause{0, round < 2 * kYield ? 50'000 : 1'000'000};
        nanosleep(&pause, nullptr);
      }
    }
  }

  const std::shared_ptr<Job<Handle>> job_;
  const Mpi<Handle>& mpi_;
  const Handle comm_;
  int rank_ = 0, size_ = 1;
};

// MPI_Init_thread, unless the program has called it, and a communicator of all ranks.
template <class Handle>
MpiJob join(const Mpi<Handle>& mpi) {
  const auto job = std::make_shared<Job<Handle>>(mpi);
  int initialised = 0, provided = 0;
  job->check(mpi.initialized(&initialised));
  if (initialised) {
    job->check(mpi.query_thread(&provided));
  } else {
    job->check(mpi.init_thread(nullptr, nullptr, mpi.constants.thread_multiple, &provided));
  }
  if (provided < mpi.constants.thread_multiple) job->fail("the library does not let several threads call it at once");

  int rank = 0, length = 0;
  job->check(mpi.comm_rank(mpi.constants.comm_world, &rank));
  job->where = str_cat("rank ", rank);
  std::string library(kMpiMaxText, '\0');
  job->check(mpi.get_library_version(library.data(), &length));
  // Some libraries go on with how they were built.
  library.resize(std::min(library.find_first_of(",\n"), static_cast<size_t>(length)));

  Handle comm;
  job->check(mpi.comm_dup(mpi.constants.comm_world, &comm));
  const auto finalize = [job, initialised] {
    job->failure.check();
    int finalized = 0;
    job->check(job->mpi.finalized(&finalized));
    if (!initialised && !finalized) job->check(job->mpi.finalize());
  };
  return {library, std::make_unique<MpiCommunicator<Handle>>(job, comm), finalize};
}

}  // namespace

MpiJob join_mpi_job(const std::string& library) {
  const Library opened(library);
  int abi_version = -1, abi_subversion = -1;  // -1 as well where a library of MPI 5 has handles of its own
  if (void* get = opened.find("MPI_Abi_get_version"))
    reinterpret_cast<int (*)(int*, int*)>(get)(&abi_version, &abi_subversion);
  if (abi_version > 0) return join(Mpi<void*>(opened, standard_mpi_constants()));
  if (opened.find("ompi_mpi_comm_world"))
    return join(Mpi<void*>(opened, open_mpi_constants([&](const char* symbol) { return opened.find(symbol); })));
  return join(Mpi<int>(opened, mpich_constants()));
}

void MpiJob::finalize() {
  world->barrier();  // unlike MPI_Finalize it can be given up
  end();
}

}  // namespace longcat
