#include "comm/sockets.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace longcat {

namespace {

constexpr int kBacklog = 128;

void set_option(int fd, int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof(value)); }

Descriptor tcp_socket(int family) {
  return Descriptor(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
}

// family: AF_INET6 takes IPv4, too.
Descriptor bound(int family, bool loopback, int port) {
  sockaddr_storage storage{};
  socklen_t length;
  const auto port_bytes = htons(static_cast<uint16_t>(port));
  if (family == AF_INET6) {
    auto& address = reinterpret_cast<sockaddr_in6&>(storage);
    address.sin6_family = AF_INET6;
    address.sin6_addr = in6addr_any;
    address.sin6_port = port_bytes;
    length = sizeof(address);
  } else {
    auto& address = reinterpret_cast<sockaddr_in&>(storage);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
    address.sin_port = port_bytes;
    length = sizeof(address);
  }
  Descriptor listener = tcp_socket(family);
  if (!listener) return {};
  set_option(listener.fd(), SOL_SOCKET, SO_REUSEADDR, 1);  // beside connections of an earlier job that linger
  if (family == AF_INET6) set_option(listener.fd(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (::bind(listener.fd(), reinterpret_cast<const sockaddr*>(&storage), length) != 0) return {};
  if (::listen(listener.fd(), kBacklog) != 0) return {};
  return listener;
}

bool gone(int error) { return error != EAGAIN && error != EWOULDBLOCK && error != EINTR; }

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

std::string to_string(const Address& address) {
  const bool v6 = address.host.find(':') != std::string::npos;
  return str_cat(v6 ? "[" : "", address.host, v6 ? "]" : "", ":", address.port);
}

Descriptor listen_on(bool loopback, int port) {
  Descriptor listener;
  if (!loopback) listener = bound(AF_INET6, false, port);
  if (!listener) listener = bound(AF_INET, loopback, port);
  if (!listener) throw Error(str_cat("cannot listen at port ", port, ": ", std::strerror(errno)));
  return listener;
}

int port_of(const Descriptor& listener) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  ::getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&storage), &length);
  return ntohs(storage.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(storage).sin6_port
                                             : reinterpret_cast<const sockaddr_in&>(storage).sin_port);
}

Descriptor accept_from(const Descriptor& listener) {
  Descriptor connection(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (connection) set_option(connection.fd(), IPPROTO_TCP, TCP_NODELAY, 1);
  return connection;
}

Descriptor connect_to(const Address& address, Deadline deadline, std::string& error) {
  addrinfo hints{}, *first = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int result = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &first)) {
    error = ::gai_strerror(result);
    return {};
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> found(first, ::freeaddrinfo);
  for (const addrinfo* a = first; a; a = a->ai_next) {
    Descriptor connection = tcp_socket(a->ai_family);
    int code = 0;
    if (!connection) {
      code = errno;
    } else if (::connect(connection.fd(), a->ai_addr, a->ai_addrlen) != 0) {
      code = errno;
      if (code == EINPROGRESS) {
        pollfd ready{connection.fd(), POLLOUT, 0};
        code = ::poll(&ready, 1, milliseconds_until(deadline)) > 0 ? 0 : ETIMEDOUT;
        socklen_t length = sizeof(code);
        if (code == 0) ::getsockopt(connection.fd(), SOL_SOCKET, SO_ERROR, &code, &length);
      }
    }
    if (code == 0) {
      set_option(connection.fd(), IPPROTO_TCP, TCP_NODELAY, 1);
      return connection;
    }
    error = std::strerror(code);
  }
  return {};
}

std::string peer_host(const Descriptor& connection) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  char host[NI_MAXHOST] = {};
  if (::getpeername(connection.fd(), reinterpret_cast<sockaddr*>(&storage), &length) == 0)
    ::getnameinfo(reinterpret_cast<const sockaddr*>(&storage), length, host, sizeof(host), nullptr, 0, NI_NUMERICHOST);
  return host;
}

bool is_loopback(const std::string& host) {
  return host == "::1" || host.starts_with("127.") || host.starts_with("::ffff:127.");
}

int64_t send_some(const Descriptor& connection, const void* data, int64_t bytes) {
  const ssize_t moved = ::send(connection.fd(), data, static_cast<size_t>(bytes), MSG_DONTWAIT | MSG_NOSIGNAL);
  return moved >= 0 ? moved : gone(errno) ? -1 : 0;
}

int64_t receive_some(const Descriptor& connection, void* data, int64_t bytes) {
  const ssize_t moved = ::recv(connection.fd(), data, static_cast<size_t>(bytes), MSG_DONTWAIT);
  return moved > 0 ? moved : moved == 0 || gone(errno) ? -1 : 0;
}

void wait_readable(const Descriptor& connection, const Descriptor& stop, Deadline deadline) {
  pollfd ready[] = {{connection.fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
  ::poll(ready, 2, milliseconds_until(deadline));
}

Descriptor make_event() { return Descriptor(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)); }

void signal(const Descriptor& event) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event.fd(), &one, sizeof(one));
}

int milliseconds_until(Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

}  // namespace longcat
