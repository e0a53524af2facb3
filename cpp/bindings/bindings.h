// One register function a file; module.cpp calls them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace longcat {

void register_checkpoint(pybind11::module_& module);
void register_engine(pybind11::module_& module);
void register_testing(pybind11::module_& module);

}  // namespace longcat
