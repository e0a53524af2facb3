#include "comm/tcp_acceptor.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>

#include "base/error.h"

namespace longcat {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kHandshakeTime{5};  // from connecting to the last byte of the handshake
constexpr seconds kAnswerTime{5};     // for the answer to it
constexpr size_t kMaxPending = 64;
constexpr milliseconds kRetry{50};
constexpr milliseconds kCheck{20};  // for a failure elsewhere

Deadline in(milliseconds time) { return std::chrono::steady_clock::now() + time; }

// Compares in constant time, so that the time does not tell where the tokens differ.
bool same(const std::array<unsigned char, JobToken::kBytes>& a, const std::array<unsigned char, JobToken::kBytes>& b) {
  unsigned char difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference = static_cast<unsigned char>(difference | (a[i] ^ b[i]));
  return difference == 0;
}

}  // namespace

Acceptor::Acceptor(const JobToken& token, bool loopback, int port)
    : token_(token),
      listener_(listen_on(loopback, port)),
      port_(port_of(listener_)),
      stop_(make_event()),
      thread_([this] { run(); }) {}

Acceptor::~Acceptor() {
  signal(stop_);
  thread_.join();
}

std::vector<Acceptor::Arrival> Acceptor::wait_for(uint64_t channel, std::span<const int> ranks, Deadline deadline,
                                                  const Failure& failure) {
  std::unique_lock lock(mutex_);
  const auto is_here = [&](int rank) { return arrivals_.contains({channel, rank}); };
  while (!std::ranges::all_of(ranks, is_here)) {
    failure.check();
    if (std::chrono::steady_clock::now() >= deadline) {
      std::string missing;
      for (const int rank : ranks)
        if (!is_here(rank)) missing += str_cat(missing.empty() ? "" : ", ", rank);
      throw Error(str_cat("rank ", missing, " has not connected"));
    }
    arrived_.wait_for(lock, kCheck);
  }
  std::vector<Arrival> all;
  for (const int rank : ranks) all.push_back(std::move(arrivals_.extract({channel, rank}).mapped()));
  return all;
}

void Acceptor::run() {
  std::vector<pollfd> ready;
  while (true) {
    ready = {{stop_.fd(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    Deadline next = in(seconds(3600));
    for (const Pending& p : pending_) {
      ready.push_back({p.connection.fd(), POLLIN, 0});
      next = std::min(next, p.until);
    }
    ::poll(ready.data(), ready.size(), milliseconds_until(next));
    if (ready[0].revents) return;
    settle();
    if (ready[1].revents) accept_all();
  }
}

void Acceptor::settle() {
  std::erase_if(pending_, [&](Pending& p) { return is_settled(p); });
}

void Acceptor::accept_all() {
  while (Descriptor connection = accept_from(listener_)) {
    if (pending_.size() == kMaxPending) settle();                          // many ranks may come at once
    if (pending_.size() == kMaxPending) pending_.erase(pending_.begin());  // a rank that is pushed out comes again
    pending_.push_back({.connection = std::move(connection), .until = in(kHandshakeTime)});
  }
  if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(kRetry);  // poll would say at once: it waits
}

bool Acceptor::is_settled(Pending& p) {
  constexpr int64_t kBytes = sizeof(Handshake);
  const int64_t more =
      receive_some(p.connection, reinterpret_cast<std::byte*>(&p.handshake) + p.received, kBytes - p.received);
  if (more < 0) return true;
  p.received += more;
  if (p.received < kBytes) return std::chrono::steady_clock::now() >= p.until;
  if (!same(p.handshake.token, token_.connects)) return true;
  if (send_some(p.connection, token_.answers.data(), JobToken::kBytes) != JobToken::kBytes) return true;
  {
    const std::lock_guard lock(mutex_);  // one that comes again takes the place of its first try
    arrivals_[{p.handshake.channel, p.handshake.rank}] = {.connection = std::move(p.connection),
                                                          .handshake = p.handshake};
  }
  arrived_.notify_all();
  return true;
}

Descriptor try_acceptor(const Address& address, const JobToken& token, Handshake handshake, Deadline until,
                        const Failure& failure, std::string& error) {
  handshake.token = token.connects;
  Descriptor connection = connect_to(address, until, error);
  if (!connection) return {};
  std::array<unsigned char, JobToken::kBytes> answer{};
  int64_t received = 0, more = send_some(connection, &handshake, sizeof(handshake)) == sizeof(handshake) ? 0 : -1;
  while (more >= 0 && received < JobToken::kBytes && std::chrono::steady_clock::now() < until) {
    failure.check();
    wait_readable(connection, failure.readable(), until);
    more = receive_some(connection, answer.data() + received, JobToken::kBytes - received);
    received += more;
  }
  if (received == JobToken::kBytes && same(answer, token.answers)) return connection;
  error = "what listens there does not know the token of this job";
  return {};
}

Descriptor connect_to_acceptor(const Address& address, const JobToken& token, const Handshake& handshake,
                               Deadline deadline, const Failure& failure) {
  std::string error;
  while (true) {
    const Deadline until = std::min(deadline, in(kAnswerTime));
    if (Descriptor connection = try_acceptor(address, token, handshake, until, failure, error)) return connection;
    failure.check();
    if (std::chrono::steady_clock::now() + kRetry >= deadline) throw Error(error);
    std::this_thread::sleep_for(kRetry);
  }
}

}  // namespace longcat
