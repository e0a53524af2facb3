// A rank's acceptor: it listens for as long as the job lasts, and every communicator has connections of its own.
// Unknown peers (which send no handshake, or one without the job's token) are refused, and delay no rank.
#pragma once

#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "comm/failure.h"
#include "comm/sockets.h"

namespace longcat {

// What ranks know and unknown peers do not. One half proves that the connecting side belongs to the job, the other half
// that the answering side does. Both travel unencrypted.
struct JobToken {
  static constexpr int kBytes = 32;
  std::array<unsigned char, kBytes> connects, answers;
};

// The first bytes of a connection. All ranks run the same program on the same kind of machine.
struct Handshake {
  std::array<unsigned char, JobToken::kBytes> token;
  uint64_t channel;    // the communicator it is for
  int32_t rank, size;  // of the job
  int32_t port;        // where this rank listens itself
  int32_t unused;
};

class Acceptor {
 public:
  // Listens at the loopback address, or at all. port 0: any free port. Throws Error when the address cannot be used.
  Acceptor(const JobToken& token, bool loopback, int port);
  ~Acceptor();

  int port() const { return port_; }

  struct Arrival {
    Descriptor connection;
    Handshake handshake{};
  };
  // The connections of `ranks` for a channel, in their order, once all are there. Throws Error with the ranks that are
  // missing at the deadline, or with the job's failure.
  std::vector<Arrival> wait_for(uint64_t channel, std::span<const int> ranks, Deadline deadline,
                                const Failure& failure);

 private:
  struct Pending {
    Descriptor connection;
    Deadline until;
    Handshake handshake{};
    int64_t received = 0;
  };

  void run();
  void accept_all();
  void settle();                      // lets in the ranks whose handshakes are complete
  bool is_settled(Pending& pending);  // its handshake is complete, or it is refused

  const JobToken token_;
  const Descriptor listener_;
  const int port_;
  const Descriptor stop_;
  std::vector<Pending> pending_;  // of the thread
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::map<std::pair<uint64_t, int>, Arrival> arrivals_;  // by channel and rank
  std::thread thread_;
};

// One try to connect to the acceptor of another rank. No connection, and why in `error`, when there is none by `until`.
// Throws the job's failure.
Descriptor try_acceptor(const Address& address, const JobToken& token, Handshake handshake, Deadline until,
                        const Failure& failure, std::string& error);

// The same until it succeeds. Throws Error that says why it did not by the deadline.
Descriptor connect_to_acceptor(const Address& address, const JobToken& token, const Handshake& handshake,
                               Deadline deadline, const Failure& failure);

}  // namespace longcat
