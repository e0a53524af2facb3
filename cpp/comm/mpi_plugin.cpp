// A plugin: MpiApi over the MPI library it is built with. The only file that includes mpi.h.
//
// Collectives do not block inside MPI: they are begun and then asked about, so that a rank whose peers are gone can
// give up, and a rank with nothing to do (the others wait for rank 0 between requests) leaves its core to others.
#include <mpi.h>
#include <sched.h>
#include <time.h>

#include <cstdio>
#include <cstring>

#include "comm/mpi_api.h"

namespace {

using longcat::MpiShouldStop;

bool initialised_here = false;
char error_text[MPI_MAX_ERROR_STRING];

const char* text_of(int code) {
  if (code == MPI_SUCCESS) return nullptr;
  int length = 0;
  MPI_Error_string(code, error_text, &length);
  return error_text;
}

MPI_Comm comm_of(void* comm) { return *static_cast<MPI_Comm*>(comm); }

void* owned(MPI_Comm comm) {
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  return new MPI_Comm(comm);
}

// Until the request is done. Asks again and again at first, since a step has a hundred sums a few microseconds apart;
// then lets others run; then sleeps, a millisecond at most.
const char* wait(MPI_Request& request, MpiShouldStop stop, void* context) {
  constexpr int kBusy = 2000, kYield = 20000;
  for (int round = 0;; ++round) {
    int done = 0;
    if (const char* error = text_of(MPI_Test(&request, &done, MPI_STATUS_IGNORE))) return error;
    if (done) return nullptr;
    if (round < kBusy) continue;
    if (stop(context)) return "given up";  // a collective's request cannot be freed; the process ends soon
    if (round < kYield) {
      sched_yield();
    } else {
      const timespec pause{0, round < 2 * kYield ? 50'000 : 1'000'000};
      nanosleep(&pause, nullptr);
    }
  }
}

const char* init(void** world) {
  int initialised = 0, provided = 0;
  MPI_Initialized(&initialised);
  if (initialised) {
    MPI_Query_thread(&provided);
  } else {
    if (const char* error = text_of(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided))) return error;
    initialised_here = true;
  }
  if (provided < MPI_THREAD_MULTIPLE) return "this MPI library does not let several threads call it at once";
  MPI_Comm comm;
  if (const char* error = text_of(MPI_Comm_dup(MPI_COMM_WORLD, &comm))) return error;
  *world = owned(comm);
  return nullptr;
}

const char* finalize() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return initialised_here && !finalized ? text_of(MPI_Finalize()) : nullptr;
}

const char* describe(char* text, int64_t size) {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(version, &length);
  if (char* end = std::strpbrk(version, ",\n")) *end = 0;
  std::snprintf(text, static_cast<size_t>(size), "%s", version);
  return nullptr;
}

int rank(void* comm) {
  int value = 0;
  MPI_Comm_rank(comm_of(comm), &value);
  return value;
}

int size(void* comm) {
  int value = 1;
  MPI_Comm_size(comm_of(comm), &value);
  return value;
}

const char* split(void* comm, int color, void** out) {
  MPI_Comm part;
  if (const char* error = text_of(MPI_Comm_split(comm_of(comm), color, rank(comm), &part))) return error;
  *out = owned(part);
  return nullptr;
}

void free_comm(void* comm) {
  // MPI_Comm_free waits for all ranks, who may be gone: the handle is small, and the job is over soon.
  delete static_cast<MPI_Comm*>(comm);
}

const char* all_gather(void* comm, void* out, const void* x, int64_t bytes, MpiShouldStop stop, void* context) {
  MPI_Request request;
  const int count = static_cast<int>(bytes);
  if (const char* error = text_of(MPI_Iallgather(x, count, MPI_BYTE, out, count, MPI_BYTE, comm_of(comm), &request)))
    return error;
  return wait(request, stop, context);
}

const char* all_to_all(void* comm, void* out, const void* x, int64_t bytes, MpiShouldStop stop, void* context) {
  MPI_Request request;
  const int count = static_cast<int>(bytes);
  if (const char* error = text_of(MPI_Ialltoall(x, count, MPI_BYTE, out, count, MPI_BYTE, comm_of(comm), &request)))
    return error;
  return wait(request, stop, context);
}

const char* broadcast(void* comm, void* x, int64_t bytes, int root, MpiShouldStop stop, void* context) {
  MPI_Request request;
  if (const char* error = text_of(MPI_Ibcast(x, static_cast<int>(bytes), MPI_BYTE, root, comm_of(comm), &request)))
    return error;
  return wait(request, stop, context);
}

const char* barrier(void* comm, MpiShouldStop stop, void* context) {
  MPI_Request request;
  if (const char* error = text_of(MPI_Ibarrier(comm_of(comm), &request))) return error;
  return wait(request, stop, context);
}

const longcat::MpiApi api{.version = longcat::MpiApi::kVersion,
                          .init = init,
                          .finalize = finalize,
                          .describe = describe,
                          .rank = rank,
                          .size = size,
                          .split = split,
                          .free = free_comm,
                          .all_gather = all_gather,
                          .all_to_all = all_to_all,
                          .broadcast = broadcast,
                          .barrier = barrier};

}  // namespace

extern "C" __attribute__((visibility("default"))) const longcat::MpiApi* longcat_mpi_api() { return &api; }
