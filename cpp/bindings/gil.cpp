#include "bindings/gil.h"

#include <pthread.h>
#include <unistd.h>

// CMakeLists.txt compiles this file without exceptions. A cleanup handler of glibc is then a jump buffer, to which the
// end of a thread jumps from Python's C frames. With exceptions it would be a destructor, which needs this module's
// unwinder.
#ifdef __EXCEPTIONS
#error "compile gil.cpp with -fno-exceptions"
#endif

namespace longcat {

namespace {

void sleep_for_ever(void*) {
  while (true) pause();
}

}  // namespace

void restore_thread(PyThreadState* state) {
  pthread_cleanup_push(sleep_for_ever, nullptr);
  PyEval_RestoreThread(state);
  pthread_cleanup_pop(0);
}

PyGILState_STATE ensure_gil() {
  PyGILState_STATE state;
  pthread_cleanup_push(sleep_for_ever, nullptr);
  state = PyGILState_Ensure();
  pthread_cleanup_pop(0);
  return state;
}

}  // namespace longcat
