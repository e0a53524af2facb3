#include "base/control_groups.h"

#include <sstream>

namespace longcat {

namespace {

using Path = std::filesystem::path;

void add_with_parents(std::vector<Path>& folders, const Path& mount, Path group) {
  for (; !group.empty(); group = group.parent_path()) folders.push_back(mount / group);
}

}  // namespace

std::vector<Path> control_groups(const Path& root, const std::string& controller) {
  const Path mount = root / "sys/fs/cgroup";
  std::vector<Path> folders = {mount, mount / controller};
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "number:controllers:/path"; version 2 has number 0
    std::istringstream fields(line);
    std::string number, controllers, path;
    std::getline(std::getline(std::getline(fields, number, ':'), controllers, ':'), path);
    const Path group = Path(path).relative_path();
    if (number == "0") add_with_parents(folders, mount, group);
    if (("," + controllers + ",").find("," + controller + ",") != std::string::npos)
      add_with_parents(folders, mount / controller, group);
  }
  return folders;
}

}  // namespace longcat
