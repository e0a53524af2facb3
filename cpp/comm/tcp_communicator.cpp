// Ranks as processes that talk by TCP, each with each.
//
// A communicator has connections of its own, so several threads may use several communicators at once. Bytes that one
// communicator does not read yet hold up no other; on shared connections one reader would have to keep the bytes of
// all. The cost is size - 1 descriptors for each communicator, of which a rank has a handful.
#include <poll.h>
#include <sched.h>

#include <atomic>
#include <cstring>

#include "comm/communicator.h"
#include "comm/tcp_acceptor.h"

namespace longcat {

namespace {

constexpr std::chrono::seconds kLastWords{2};  // for who watches over the ranks to say why one is gone

// The state that all communicators of this process share.
struct Job {
  Job(const TcpRendezvous& m, const JobToken& job_token, int port)
      : rendezvous(m), token(job_token), acceptor(job_token, m.one_machine, port) {}

  Deadline deadline() const {
    const auto timeout = std::chrono::duration<double>(rendezvous.timeout_s);
    return std::chrono::steady_clock::now() + std::chrono::ceil<std::chrono::nanoseconds>(timeout);
  }
  Handshake handshake(uint64_t channel) const {
    return {.token = {},
            .channel = channel,
            .rank = rendezvous.rank,
            .size = rendezvous.size,
            .port = acceptor.port(),
            .unused = 0};
  }
  // Returns a new channel number, which is unique among all ranks.
  uint64_t new_channel() {
    return static_cast<uint64_t>(rendezvous.rank) << 32 | num_channels.fetch_add(1, std::memory_order_relaxed);
  }
  template <class... Args>
  Error error(const Args&... args) const {
    return Error(str_cat("[tcp] rank ", rendezvous.rank, ": ", args...));
  }

  const TcpRendezvous rendezvous;
  const JobToken token;
  Failure failure;
  Acceptor acceptor;
  std::vector<Address> acceptors;          // by rank
  std::atomic<uint32_t> num_channels = 1;  // 0 is that of the rendezvous
};

// Connections to `members`, in their order, none to this rank itself: a rank connects to the acceptors of lower ranks,
// and waits for higher ranks.
std::vector<Descriptor> connect_members(Job& job, uint64_t channel, const std::vector<int>& members) {
  std::vector<Descriptor> peers(members.size());
  std::vector<int> higher;
  size_t own = 0;
  const Deadline deadline = job.deadline();
  for (size_t i = 0; i < members.size(); ++i) {
    const int rank = members[i];
    if (rank == job.rendezvous.rank) own = i;
    if (rank > job.rendezvous.rank) higher.push_back(rank);
    if (rank >= job.rendezvous.rank) continue;
    const Address& address = job.acceptors[static_cast<size_t>(rank)];
    try {
      peers[i] = connect_to_acceptor(address, job.token, job.handshake(channel), deadline, job.failure);
    } catch (const Error& error) {
      job.failure.check();
      throw job.error("rank ", rank, " cannot be reached at ", to_string(address), ": ", error.what());
    }
  }
  try {
    auto arrivals = job.acceptor.wait_for(channel, higher, deadline, job.failure);
    for (size_t i = 0; i < arrivals.size(); ++i) peers[own + 1 + i] = std::move(arrivals[i].connection);
  } catch (const Error& error) {
    job.failure.check();
    throw job.error(error.what(), " within ", job.rendezvous.timeout_s, " s");
  }
  return peers;
}

// The bytes to exchange between this rank and another.
struct Traffic {
  const std::byte* send = nullptr;
  int64_t to_send = 0;  // [bytes]
  std::byte* receive = nullptr;
  int64_t to_receive = 0;

  bool done() const { return to_send == 0 && to_receive == 0; }
};

class TcpCommunicator final : public Communicator {
 public:
  // members: ranks of the job; peers: the connections to them.
  TcpCommunicator(std::shared_ptr<Job> job, std::vector<int> members, std::vector<Descriptor> peers)
      : job_(std::move(job)), members_(std::move(members)), peers_(std::move(peers)), traffic_(members_.size()) {
    while (members_[static_cast<size_t>(rank_)] != job_->rendezvous.rank) ++rank_;
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  std::unique_ptr<Communicator> split(int color) override {
    struct Wish {
      int32_t color, rank;
      uint64_t channel;
    } mine{color, job_->rendezvous.rank, job_->new_channel()};
    std::vector<Wish> wishes(members_.size());
    const auto bytes_of = [](Wish* first, size_t count) {
      return Tensor(first, DType::u8, {static_cast<int64_t>(count * sizeof(Wish))});
    };
    all_gather(bytes_of(wishes.data(), wishes.size()), bytes_of(&mine, 1));
    std::vector<int> alike;
    uint64_t channel = 0;  // of the first one
    for (const Wish& wish : wishes) {
      if (wish.color != color) continue;
      if (alike.empty()) channel = wish.channel;
      alike.push_back(wish.rank);
    }
    std::vector<Descriptor> peers = connect_members(*job_, channel, alike);
    return std::make_unique<TcpCommunicator>(job_, std::move(alike), std::move(peers));
  }

  void all_gather(Tensor out, Tensor x) override {
    check_blocks(out, x.numel() * size(), x);
    const int64_t block = x.num_bytes();
    for (int r = 0; r < size(); ++r)
      traffic(r) = {x.data<std::byte>(), block, out.data<std::byte>() + r * block, block};
    exchange();
  }

  void all_to_all(Tensor out, Tensor x) override {
    check_blocks(out, x.numel(), x);
    LC_CHECK(x.numel() % size() == 0, x.shape_string(), " on ", size(), " ranks");
    const int64_t block = x.num_bytes() / size();
    for (int r = 0; r < size(); ++r)
      traffic(r) = {x.data<std::byte>() + r * block, block, out.data<std::byte>() + r * block, block};
    exchange();
  }

  void broadcast(Tensor x, int root) override {
    LC_CHECK(x.is_contiguous() && 0 <= root && root < size());
    for (int r = 0; r < size(); ++r) {
      traffic(r) = {};
      if (rank_ == root && r != root) traffic(r) = {.send = x.data<std::byte>(), .to_send = x.num_bytes()};
      if (rank_ != root && r == root) traffic(r) = {.receive = x.data<std::byte>(), .to_receive = x.num_bytes()};
    }
    exchange();
  }

  void barrier() override {
    std::vector<std::byte> all(members_.size());
    std::byte mine{};
    all_gather(Tensor(all.data(), DType::u8, {size()}), Tensor(&mine, DType::u8, {1}));
  }

  void abort(const std::string& reason) noexcept override { job_->failure.set(reason); }
  std::string failure() const override { return job_->failure.reason(); }

 private:
  // Number of tries before a wait in poll(): most bytes of other ranks arrive within a few microseconds.
  static constexpr int kTries = 100;

  Traffic& traffic(int r) { return traffic_[static_cast<size_t>(r)]; }

  void check_blocks(Tensor out, int64_t count, Tensor x) const {
    LC_CHECK(out.is_contiguous() && x.is_contiguous() && out.numel() == count && out.dtype() == x.dtype(),
             out.shape_string(), " from ", x.shape_string(), " on ", size(), " ranks");
  }

  // Moves all of traffic_, in any order: no rank has to send or receive first.
  void exchange() {
    job_->failure.check();
    Traffic& own = traffic(rank_);
    if (own.to_send > 0) std::memcpy(own.receive, own.send, static_cast<size_t>(own.to_send));
    own = {};
    for (int tries = 0;;) {
      bool moved = false, done = true;
      for (size_t r = 0; r < members_.size(); ++r) {
        moved = move_some(r) || moved;
        done = done && traffic_[r].done();
      }
      if (done) return;
      if (moved) {
        tries = 0;
      } else if (++tries < kTries) {
        ::sched_yield();
      } else {
        wait();
        job_->failure.check();
      }
    }
  }

  bool move_some(size_t r) {
    Traffic& t = traffic_[r];
    int64_t sent = 0, received = 0;
    if (t.to_send > 0) sent = send_some(peers_[r], t.send, t.to_send);
    if (t.to_receive > 0) received = receive_some(peers_[r], t.receive, t.to_receive);
    if (sent < 0 || received < 0) lost(r);
    t.send += sent;
    t.to_send -= sent;
    t.receive += received;
    t.to_receive -= received;
    return sent + received > 0;
  }

  void wait() {
    ready_.assign(1, {job_->failure.readable().fd(), POLLIN, 0});
    for (size_t r = 0; r < members_.size(); ++r) {
      const Traffic& t = traffic_[r];
      const int events = (t.to_receive > 0 ? POLLIN : 0) | (t.to_send > 0 ? POLLOUT : 0);
      if (events) ready_.push_back({peers_[r].fd(), static_cast<short>(events), 0});
    }
    ::poll(ready_.data(), ready_.size(), -1);
  }

  [[noreturn]] void lost(size_t r) {
    pollfd reason{job_->failure.readable().fd(), POLLIN, 0};
    ::poll(&reason, 1, milliseconds_until(std::chrono::steady_clock::now() + kLastWords));
    job_->failure.set(str_cat("[tcp] rank ", members_[r], " has closed its connections: it was killed, or it failed"));
    job_->failure.check();
    LC_CHECK(false);
  }

  const std::shared_ptr<Job> job_;  // of all communicators
  const std::vector<int> members_;
  const std::vector<Descriptor> peers_;  // by rank here; none at its own
  std::vector<Traffic> traffic_;
  std::vector<pollfd> ready_;
  int rank_ = 0;
};

// The address of a listening rank, as rank 0 tells the others. No host: the host by which they reached rank 0.
struct Place {
  char host[64];
  int32_t port;
};

// Rank 0: waits for all, and tells each where the others are.
std::vector<Descriptor> receive_all(Job& job) {
  const int size = job.rendezvous.size;
  std::vector<int> others;
  for (int rank = 1; rank < size; ++rank) others.push_back(rank);
  std::vector<Acceptor::Arrival> arrivals;
  try {
    arrivals = job.acceptor.wait_for(0, others, job.deadline(), job.failure);
  } catch (const Error& error) {
    throw job.error(error.what(), " within ", job.rendezvous.timeout_s, " s");
  }
  std::vector<Place> places(static_cast<size_t>(size));
  places[0].port = job.acceptor.port();
  std::vector<Descriptor> peers(1);
  for (Acceptor::Arrival& arrival : arrivals) {
    if (arrival.handshake.size != size)
      throw job.error("rank ", arrival.handshake.rank, " is one of ", arrival.handshake.size, ", and rank 0 one of ",
                      size, ": start all with the same WORLD_SIZE");
    Place& place = places[peers.size()];
    place.port = arrival.handshake.port;
    const std::string host = peer_host(arrival.connection);
    if (!is_loopback(host)) host.copy(place.host, sizeof(place.host) - 1);
    peers.push_back(std::move(arrival.connection));
  }
  for (Descriptor& peer : peers) {
    const auto bytes = static_cast<int64_t>(places.size() * sizeof(Place));
    if (peer && send_some(peer, places.data(), bytes) != bytes)
      throw job.error("a rank has disconnected during the rendezvous");
  }
  return peers;
}

// The other ranks: connect to rank 0, receive where all ranks listen, and connect to each other.
std::vector<Descriptor> go_to_rank_0(Job& job) {
  const TcpRendezvous& m = job.rendezvous;
  const Address first{m.one_machine ? "127.0.0.1" : m.host, m.port};
  const Deadline deadline = job.deadline();
  Descriptor connection;
  try {
    connection = connect_to_acceptor(first, job.token, job.handshake(0), deadline, job.failure);
  } catch (const Error& error) {
    throw job.error("rank 0 cannot be reached at ", to_string(first), " within ", m.timeout_s, " s: ", error.what());
  }
  std::vector<Place> places(static_cast<size_t>(m.size));
  auto* data = reinterpret_cast<std::byte*>(places.data());
  int64_t left = static_cast<int64_t>(places.size() * sizeof(Place)), more = 0;
  for (; left > 0 && more >= 0 && std::chrono::steady_clock::now() < deadline; left -= more, data += more) {
    wait_readable(connection, job.failure.readable(), deadline);
    more = receive_some(connection, data, left);
    if (more < 0) throw job.error("rank 0 has ended during the rendezvous: see what it says");
  }
  if (left > 0) throw job.error("rank 0 waits for other ranks, which have not connected within ", m.timeout_s, " s");
  const std::string host_of_first = peer_host(connection);
  std::vector<int> members;
  for (int rank = 0; rank < m.size; ++rank) {
    Place& place = places[static_cast<size_t>(rank)];
    place.host[sizeof(place.host) - 1] = 0;
    job.acceptors.push_back({place.host[0] ? place.host : host_of_first, place.port});
    if (rank > 0) members.push_back(rank);
  }
  std::vector<Descriptor> peers = connect_members(job, 0, members);
  peers.insert(peers.begin(), std::move(connection));
  return peers;
}

}  // namespace

TcpJob::TcpJob(const TcpRendezvous& rendezvous) {
  JobToken token;
  if (rendezvous.token.size() != sizeof(token)) throw std::invalid_argument("a token has 64 bytes");
  if (rendezvous.size < 1 || rendezvous.rank < 0 || rendezvous.rank >= rendezvous.size)
    throw std::invalid_argument(
        str_cat("rank ", rendezvous.rank, " of ", rendezvous.size, "; expected ranks from 0 to size - 1"));
  std::memcpy(&token, rendezvous.token.data(), sizeof(token));
  std::shared_ptr<Job> job;
  try {
    job = std::make_shared<Job>(rendezvous, token, rendezvous.rank == 0 ? rendezvous.port : 0);
  } catch (const Error& error) {
    throw Error(str_cat("[tcp] rank ", rendezvous.rank, " ", error.what(),
                        rendezvous.rank == 0 ? ": give the job another MASTER_PORT" : ""));
  }
  std::vector<Descriptor> peers = rendezvous.rank == 0 ? receive_all(*job) : go_to_rank_0(*job);
  std::vector<int> members;
  for (int rank = 0; rank < rendezvous.size; ++rank) members.push_back(rank);
  world_ = std::make_unique<TcpCommunicator>(std::move(job), std::move(members), std::move(peers));
}

void TcpJob::finalize() { world_->barrier(); }

}  // namespace longcat
