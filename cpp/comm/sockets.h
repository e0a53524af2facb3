// TCP sockets that never block: a thread waits in poll(), and another thread can end its wait.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

namespace longcat {

using Deadline = std::chrono::steady_clock::time_point;

// A file descriptor, closed at the end; -1: none.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor();

  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// The address of a listening rank. host: a name, or an address in digits.
struct Address {
  std::string host;
  int port = 0;
};

std::string to_string(const Address& address);

// Listens at the loopback address alone, or at every address of this machine. port 0: any. Throws Error.
Descriptor listen_on(bool loopback, int port);
int port_of(const Descriptor& listener);

// Returns the next connection that waits; none when no connection waits, or it has closed already.
Descriptor accept_from(const Descriptor& listener);

// A connection by `deadline`; none, and why in `error`, when there is none. Looking up a name may take longer.
Descriptor connect_to(const Address& address, Deadline deadline, std::string& error);
std::string peer_host(const Descriptor& connection);  // in digits
bool is_loopback(const std::string& host);            // an address in digits

// Sends or receives without waiting. Returns the bytes moved; 0: none can be moved now; -1: the other side is gone.
int64_t send_some(const Descriptor& connection, const void* data, int64_t bytes);
int64_t receive_some(const Descriptor& connection, void* data, int64_t bytes);

// Waits until the connection or `stop` can be read, or the deadline has come.
void wait_readable(const Descriptor& connection, const Descriptor& stop, Deadline deadline);

// A descriptor that poll() finds readable once it is signalled.
Descriptor make_event();
void signal(const Descriptor& event);

int milliseconds_until(Deadline deadline);  // for poll(): rounded up, not negative

}  // namespace longcat
