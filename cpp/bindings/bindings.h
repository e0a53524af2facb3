// The register functions of the native module, one for each file. module.cpp calls them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>

#include "bindings/gil.h"
#include "comm/communicator.h"

namespace longcat {

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
