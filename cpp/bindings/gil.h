// Releases the GIL and takes it back, also while the interpreter shuts down.
//
// During its shutdown, Python up to 3.13 ends each thread that asks for the GIL: glibc unwinds the thread's stack. C++
// frames do not survive that. A noexcept destructor aborts, and a module with an unwinder of its own (libc++) crashes.
// Here such a thread sleeps until the process ends.
#pragma once

#include <Python.h>

namespace longcat {

// PyEval_RestoreThread. Does not return while the interpreter shuts down.
void restore_thread(PyThreadState* state);

// PyGILState_Ensure. Does not return while the interpreter shuts down.
PyGILState_STATE ensure_gil();

// Releases the GIL while this thread waits or computes.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { restore_thread(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// Takes the GIL for a call into Python.
class GilAcquire {
 public:
  GilAcquire() : state_(ensure_gil()) {}
  ~GilAcquire() { PyGILState_Release(state_); }
  GilAcquire(const GilAcquire&) = delete;
  GilAcquire& operator=(const GilAcquire&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace longcat
