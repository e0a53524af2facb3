// The control groups of this process, which bound its memory and its processor time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace longcat {

// Returns the folders of the process's groups and of their parents, up to the mount points: a container sees nothing
// above its mount point. In version 2 a folder has the files of all controllers, in version 1 those of `controller`.
// root: the folder that holds proc/ and sys/.
std::vector<std::filesystem::path> control_groups(const std::filesystem::path& root, const std::string& controller);

// Returns the number at the beginning of a file; nothing when the file is absent or begins otherwise ("max").
inline std::optional<int64_t> number_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

}  // namespace longcat
