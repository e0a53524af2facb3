// The control groups of this process, which bound its memory and its processor time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace longcat {

struct ControlGroup {
  std::filesystem::path folder;
  int version;  // 1 or 2: it decides the names of the files
};

// Returns the process's groups that may bound `controller`, and their parents up to the mount points: a container sees
// nothing above its mount point.
// root: the folder that holds proc/ and sys/.
std::vector<ControlGroup> control_groups(const std::filesystem::path& root, const std::string& controller);

// Returns the number at the beginning of a file; nothing when the file is absent or begins otherwise ("max").
inline std::optional<int64_t> number_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

}  // namespace longcat
