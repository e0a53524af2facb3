#include "base/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "base/control_groups.h"

namespace longcat {

namespace {

using Path = std::filesystem::path;

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
constexpr int64_t kUntold = int64_t{4} << 30;

// The file names of a control group's memory controller, and the lines of its memory.stat that count child groups, too.
struct GroupNames {
  const char* limit;
  const char* used;
  const char* inactive_file;
  const char* active_file;
};
constexpr GroupNames kVersion2{"memory.max", "memory.current", "inactive_file", "active_file"};
constexpr GroupNames kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                               "total_active_file"};

// Reads the number of `key` in a file of lines "key value".
std::optional<int64_t> value_of(const Path& path, const std::string& key) {
  std::ifstream file(path);
  std::string found, rest;
  int64_t value = 0;
  while (file >> found >> value) {
    if (found == key) return value;
    std::getline(file, rest);
  }
  return std::nullopt;
}

int64_t left_in_group(const Path& group, const GroupNames& names) {
  const std::optional<int64_t> limit = number_in(group / names.limit), used = number_in(group / names.used);
  if (!limit || !used) return kUnlimited;
  const Path stat = group / "memory.stat";
  const int64_t cached =
      value_of(stat, names.inactive_file).value_or(0) + value_of(stat, names.active_file).value_or(0);
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *used - cached));
}

}  // namespace

int64_t available_memory(const Path& root) {
  const std::optional<int64_t> kib = value_of(root / "proc/meminfo", "MemAvailable:");
  int64_t available = kib ? *kib * 1024 : kUnlimited;
  for (const ControlGroup& group : control_groups(root, "memory"))
    available = std::min(available, left_in_group(group.folder, group.version == 2 ? kVersion2 : kVersion1));
  return available == kUnlimited ? kUntold : available;
}

}  // namespace longcat
