#include "base/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

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

// Returns nothing when the file is absent or does not begin with a number ("max").
std::optional<int64_t> number_in(const Path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

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

// Returns the smallest room left in the group and its parents, up to the mount point. A container sees nothing above
// its mount point.
int64_t left_in_groups(const Path& mount, Path group, const GroupNames& names) {
  int64_t left = left_in_group(mount, names);
  for (; !group.empty(); group = group.parent_path()) left = std::min(left, left_in_group(mount / group, names));
  return left;
}

}  // namespace

int64_t available_memory(const Path& root) {
  const Path mount = root / "sys/fs/cgroup";
  const std::optional<int64_t> kib = value_of(root / "proc/meminfo", "MemAvailable:");
  int64_t available = std::min(left_in_groups(mount, {}, kVersion2), left_in_groups(mount / "memory", {}, kVersion1));
  if (kib) available = std::min(available, *kib * 1024);
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "number:controllers:/path"; version 2 has number 0
    std::istringstream fields(line);
    std::string number, controllers, path;
    std::getline(std::getline(std::getline(fields, number, ':'), controllers, ':'), path);
    const Path group = Path(path).relative_path();
    if (number == "0") available = std::min(available, left_in_groups(mount, group, kVersion2));
    if (("," + controllers + ",").find(",memory,") != std::string::npos)
      available = std::min(available, left_in_groups(mount / "memory", group, kVersion1));
  }
  return available == kUnlimited ? kUntold : available;
}

}  // namespace longcat
