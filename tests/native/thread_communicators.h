#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"

namespace longcat {

// Makes the ranks of a job as threads of one process. An abort reaches all of them.
std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size);

}  // namespace longcat
