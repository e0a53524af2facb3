// How much memory this process may still take.
#pragma once

#include <cstdint>
#include <filesystem>

namespace longcat {

// MemAvailable of /proc/meminfo, or what the process's control groups (versions 2 and 1, and those around them) leave,
// whichever is less [bytes]. Cached files count as free: the kernel drops them first. 4 GiB where nothing is told.
// root: where /proc and /sys are, for tests.
int64_t available_memory(const std::filesystem::path& root = "/");

}  // namespace longcat
