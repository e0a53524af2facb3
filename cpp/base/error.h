// Errors of the library. It throws and never aborts, because it runs inside a server.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace longcat {

// A file, config, weight or device call is wrong, or an internal invariant is broken. Python: longcat.Error.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Not enough memory. Python: longcat.OutOfMemoryError.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

// A device call failed for a reason other than memory. Later calls on that device cannot be trusted, so the engine
// ends.
class DeviceFailure : public Error {
 public:
  using Error::Error;
};

template <class... Args>
std::string str_cat(const Args&... args) {
  std::ostringstream out;
  ((out << args), ...);
  return out.str();
}

// Reports a bug of ours, with file, line and expression.
[[noreturn]] inline void check_failed(const char* file, int line, const char* expression, const std::string& detail) {
  throw Error(str_cat("[internal] ", file, ":", line, ": ", expression, detail.empty() ? "" : ": ", detail));
}

}  // namespace longcat

#define LC_CHECK(condition, ...)                                                                     \
  do {                                                                                               \
    if (!(condition)) [[unlikely]]                                                                   \
      ::longcat::check_failed(__FILE_NAME__, __LINE__, #condition, ::longcat::str_cat(__VA_ARGS__)); \
  } while (0)
