// What a plugin for one MPI library exports: the few calls that the ranks need, without a type of MPI's own. The core
// is built without MPI and loads a plugin when it is asked to.
#pragma once

#include <cstdint>

namespace longcat {

// Asked while a call waits; not 0: give up.
using MpiShouldStop = int (*)(void* context);

struct MpiApi {
  static constexpr int kVersion = 1;
  int version;

  // All return null, or what went wrong as text that stays. `comm`: as init() and split() give it.
  const char* (*init)(void** world);                  // once a process; MPI_Init with all threads, unless somebody did
  const char* (*finalize)();                          // if init() did
  const char* (*describe)(char* text, int64_t size);  // the library and its version

  int (*rank)(void* comm);
  int (*size)(void* comm);
  const char* (*split)(void* comm, int color, void** out);
  void (*free)(void* comm);

  // bytes: of a block.
  const char* (*all_gather)(void* comm, void* out, const void* x, int64_t bytes, MpiShouldStop stop, void* context);
  const char* (*all_to_all)(void* comm, void* out, const void* x, int64_t bytes, MpiShouldStop stop, void* context);
  const char* (*broadcast)(void* comm, void* x, int64_t bytes, int root, MpiShouldStop stop, void* context);
  const char* (*barrier)(void* comm, MpiShouldStop stop, void* context);
};

// The one symbol of a plugin.
constexpr const char* kMpiApiSymbol = "longcat_mpi_api";
using GetMpiApi = const MpiApi* (*)();

}  // namespace longcat
