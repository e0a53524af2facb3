#include "base/control_groups.h"

#include <sstream>

namespace longcat {

namespace {

using Path = std::filesystem::path;

void add_with_parents(std::vector<ControlGroup>& groups, const Path& mount, Path group, int version) {
  for (; !group.empty(); group = group.parent_path()) groups.push_back({mount / group, version});
}

}  // namespace

std::vector<ControlGroup> control_groups(const Path& root, const std::string& controller) {
  const Path mount = root / "sys/fs/cgroup", mount1 = mount / controller;
  std::vector<ControlGroup> groups = {{mount, 2}, {mount1, 1}};
  std::ifstream lines(root / "proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {  // "number:controllers:/path"; version 2 has number 0
    std::istringstream fields(line);
    std::string number, controllers, path;
    std::getline(std::getline(std::getline(fields, number, ':'), controllers, ':'), path);
    const Path group = Path(path).relative_path();
    if (number == "0") add_with_parents(groups, mount, group, 2);
    if (("," + controllers + ",").find("," + controller + ",") != std::string::npos)
      add_with_parents(groups, mount1, group, 1);
  }
  return groups;
}

}  // namespace longcat
