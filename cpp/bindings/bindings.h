// The register functions of the native module, one for each file. module.cpp calls them.
#pragma once

#include <cxxabi.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <memory>

#include "comm/communicator.h"

namespace longcat {

// Releases the GIL while this thread waits or computes. While the interpreter shuts down, no thread gets the GIL back:
// Python would unwind its stack, which destructors do not survive. Such a thread sleeps until the process ends.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      while (true) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// A communicator that Python holds. Engines take a split of it.
struct PyCommunicator {
  std::shared_ptr<Communicator> ranks;
};

void register_calibration(pybind11::module_& module);
void register_checkpoint(pybind11::module_& module);
void register_communicator(pybind11::module_& module);  // call it before register_engine
void register_engine(pybind11::module_& module);
void register_packed(pybind11::module_& module);

}  // namespace longcat
