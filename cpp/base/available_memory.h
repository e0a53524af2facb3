// The memory that this process may still allocate.
#pragma once

#include <cstdint>
#include <filesystem>

namespace longcat {

// Returns the available memory [bytes]: the smaller of MemAvailable in /proc/meminfo and the room left in the process's
// control groups. Control groups of versions 1 and 2 count, and so do their parents. Cached files count as free,
// because the kernel drops them first. Returns 4 GiB where the system states neither figure.
// root: the folder that holds proc/ and sys/; tests set it.
int64_t available_memory(const std::filesystem::path& root = "/");

// The default size of the latent cache of a rank in host memory: a quarter, divided by the ranks on this machine.
inline int64_t cache_share(int64_t available_bytes, int64_t ranks_here) { return available_bytes / 4 / ranks_here; }

}  // namespace longcat
