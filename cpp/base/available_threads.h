// The threads that this process may run at once.
#pragma once

#include <filesystem>

namespace longcat {

// Returns the number of processors that the affinity mask of this process has, or that its control groups pay for, if
// these are fewer: a quota of processor time counts as whole processors. More threads would use it up early in each
// period, and then all stand still. Returns at least 1.
// root: the folder that holds proc/ and sys/; tests set it.
int available_threads(const std::filesystem::path& root = "/");

}  // namespace longcat
