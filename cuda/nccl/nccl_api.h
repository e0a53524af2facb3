// The NCCL functions that ranks need. They are loaded at run time; building longcat needs no NCCL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace longcat {

struct NcclUniqueId {
  char bytes[128];
};

// As declared in nccl.h (2.19 and later). A result is 0 or an error number for get_error_string.
struct NcclApi {
  enum DataType : int { kUint8 = 1, kInt32 = 2, kFloat32 = 7, kBfloat16 = 9 };
  enum Op : int { kSum = 0 };
  using Comm = void*;
  using Stream = void*;

  int (*get_version)(int* version);
  int (*get_unique_id)(NcclUniqueId* id);
  int (*comm_init_rank)(Comm* comm, int size, NcclUniqueId id, int rank);
  int (*comm_destroy)(Comm comm);
  int (*comm_abort)(Comm comm);
  int (*all_gather)(const void* x, void* out, size_t count, int type, Comm comm, Stream stream);
  int (*all_reduce)(const void* x, void* out, size_t count, int type, int op, Comm comm, Stream stream);
  int (*broadcast)(const void* x, void* out, size_t count, int type, int root, Comm comm, Stream stream);
  int (*send)(const void* x, size_t count, int type, int peer, Comm comm, Stream stream);
  int (*recv)(void* out, size_t count, int type, int peer, Comm comm, Stream stream);
  int (*group_start)();
  int (*group_end)();
  const char* (*get_error_string)(int result);
};

// Loads the library that $LONGCAT_NCCL names. Without it, loads libnccl.so.2 of PyPI's nvidia-nccl next to this
// package, or else of the system. Loaded once. Throws Error that lists the places it tried.
const NcclApi& load_nccl();

}  // namespace longcat
