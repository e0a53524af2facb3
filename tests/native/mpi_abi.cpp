// Compares comm/mpi_abi.h with the header of an MPI library. test_mpi_abi.py compiles this file with each mpicxx that
// is installed.
#include "comm/mpi_abi.h"

#include <dlfcn.h>
#include <mpi.h>

#include <cstdio>
#include <type_traits>

namespace {

#if defined(OPEN_MPI)
constexpr const char* kAbi = "Open MPI";
const auto table = longcat::open_mpi_constants([](const char* symbol) { return ::dlsym(RTLD_DEFAULT, symbol); });
#elif defined(MPICH_NAME)
constexpr const char* kAbi = "MPICH";
const auto table = longcat::mpich_constants();
#else
constexpr const char* kAbi = "standard";
const auto table = longcat::standard_mpi_constants();
#endif

int num_different = 0;

template <class Ours, class Theirs>
void compare(const char* name, Ours ours, Theirs theirs) {
  static_assert(sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>);
  if (ours == (Ours)theirs) return;
  std::printf("%s differs\n", name);
  ++num_different;
}

}  // namespace

int main() {
  std::printf("%s\n", kAbi);
  compare("MPI_COMM_WORLD", table.comm_world, MPI_COMM_WORLD);
  compare("MPI_BYTE", table.byte, MPI_BYTE);
  compare("MPI_ERRORS_RETURN", table.errors_return, MPI_ERRORS_RETURN);
  compare("MPI_STATUS_IGNORE", table.status_ignore, MPI_STATUS_IGNORE);
  compare("MPI_THREAD_MULTIPLE", table.thread_multiple, static_cast<int>(MPI_THREAD_MULTIPLE));
  compare("MPI_SUCCESS", 0, static_cast<int>(MPI_SUCCESS));
  static_assert(sizeof(MPI_Request) == sizeof(table.comm_world));
  static_assert(longcat::kMpiMaxText >= MPI_MAX_ERROR_STRING);
  static_assert(longcat::kMpiMaxText >= MPI_MAX_LIBRARY_VERSION_STRING);
  return num_different;
}
