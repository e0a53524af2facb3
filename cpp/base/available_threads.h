// The threads that this process may run at once.
#pragma once

#include <filesystem>

namespace longcat {

// Returns the number of processors of the process's affinity mask, not of the machine, or fewer: a quota of processor
// time in its control groups counts as whole processors. More threads would use it up early in each period, and then
// all stand still. At least 1.
// root: the folder that holds proc/ and sys/; tests set it.
int available_threads(const std::filesystem::path& root = "/");

}  // namespace longcat
