#include "base/available_threads.h"

#include <sched.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "base/control_groups.h"

namespace longcat {

namespace {

// Returns the quota of a group in processors, or nothing.
std::optional<int64_t> quota_of(const ControlGroup& group) {
  int64_t quota = 0, period = 0;
  if (group.version == 2) {
    std::ifstream(group.folder / "cpu.max") >> quota >> period;  // "max", for none, is no number
  } else {
    quota = number_in(group.folder / "cpu.cfs_quota_us").value_or(0);  // -1: none
    period = number_in(group.folder / "cpu.cfs_period_us").value_or(0);
  }
  if (quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

int64_t processors_of_mask() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return std::thread::hardware_concurrency();
}

}  // namespace

int available_threads(const std::filesystem::path& root) {
  int64_t threads = processors_of_mask();
  for (const ControlGroup& group : control_groups(root, "cpu"))
    if (const std::optional<int64_t> quota = quota_of(group)) threads = std::min(threads, *quota);
  return static_cast<int>(std::max<int64_t>(threads, 1));
}

}  // namespace longcat
