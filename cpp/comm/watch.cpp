#include "comm/watch.h"

#include <poll.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <span>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "comm/tcp_acceptor.h"

namespace longcat {

namespace {

using std::chrono::steady_clock;

// First characters of a line.
constexpr char kBeat = '.', kFailed = '!', kBye = '~';
constexpr size_t kMaxLine = 4096;
constexpr int kRounds = 3;  // over the hosts of rank 0: an acceptor full of unknown peers drops the oldest connection
constexpr std::chrono::seconds kHostTime{5};  // for one host to answer

steady_clock::duration duration_of(double seconds) {
  return std::chrono::ceil<steady_clock::duration>(std::chrono::duration<double>(seconds));
}

// What a rank tells all others. Fixed strings end with a zero.
struct Card {
  JobToken token;     // of rank 0: the job's
  int32_t port;       // at which rank 0 listens
  int32_t process;    // id
  char machine[120];  // changes with each start of the machine, and with the space of process ids; empty: unknown
  char hosts[832];    // of rank 0, separated by commas
};
static_assert(sizeof(Card) == 1024);

void copy_text(const std::string& text, std::span<char> to) { text.copy(to.data(), to.size() - 1); }

Card own_card() {
  Card card{};
  card.process = ::getpid();
  std::string boot_id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot_id);
  char process_ids[64] = {};  // a container has its own
  if (::readlink("/proc/self/ns/pid", process_ids, sizeof(process_ids) - 1) < 0) process_ids[0] = 0;
  if (!boot_id.empty() && process_ids[0]) copy_text(str_cat(boot_id, " ", process_ids), card.machine);
  return card;
}

JobToken random_token() {
  JobToken token;
  LC_CHECK(::getrandom(&token, sizeof(token), 0) == sizeof(token));
  return token;
}

// As many whole hosts as the card takes.
std::string joined(const std::vector<std::string>& hosts, size_t most) {
  std::string text;
  for (const std::string& host : hosts)
    if (text.size() + host.size() + 1 < most) text += str_cat(text.empty() ? "" : ",", host);
  return text;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

// The connections of the other ranks, ascending. Throws Error with the missing ranks.
std::vector<Descriptor> accept_ranks(Acceptor& acceptor, int size, double connect_s) {
  std::vector<int> others;
  for (int rank = 1; rank < size; ++rank) others.push_back(rank);
  std::vector<Descriptor> connections;
  try {
    const Failure none;
    for (Acceptor::Arrival& arrival : acceptor.wait_for(0, others, steady_clock::now() + duration_of(connect_s), none))
      connections.push_back(std::move(arrival.connection));
  } catch (const Error& error) {
    throw Error(str_cat("[parallel] rank 0: ", error.what(), " within ", connect_s, " s"));
  }
  return connections;
}

Descriptor connect_to_rank_0(const Card& card, int rank, int size) {
  const Failure none;
  const Handshake handshake{.token = {}, .channel = 0, .rank = rank, .size = size, .port = 0, .unused = 0};
  const Deadline last_round = steady_clock::now() + kHostTime;
  std::string errors;
  for (int round = 0; round < kRounds && steady_clock::now() < last_round; ++round) {
    errors.clear();
    for (const std::string& host : split(card.hosts)) {
      std::string error;
      Descriptor connection =
          try_acceptor({host, card.port}, card.token, handshake, steady_clock::now() + kHostTime, none, error);
      if (connection) return connection;
      errors += str_cat(errors.empty() ? "" : "; ", host, ": ", error);
    }
  }
  throw Error(str_cat("[parallel] rank ", rank, " cannot reach rank 0 at port ", card.port, " of ", errors,
                      "; LONGCAT_HOST_IP on rank 0 names the address to use"));
}

std::string line_of(char first, std::string text = "") {
  std::ranges::replace(text, '\n', ' ');
  return first + text.substr(0, kMaxLine - 2) + '\n';
}

}  // namespace

Watch::Watch(std::shared_ptr<Communicator> job, const WatchOptions& options)
    : job_(std::move(job)), options_(options), rank_(job_->rank()) {
  const int size = job_->size();
  Card mine = own_card();
  std::optional<Acceptor> acceptor;
  if (rank_ == 0) {
    mine.token = random_token();
    acceptor.emplace(mine.token, options.hosts.empty(), 0);
    mine.port = acceptor->port();
    copy_text(options.hosts.empty() ? "127.0.0.1" : joined(options.hosts, sizeof(mine.hosts)), mine.hosts);
  }
  std::vector<Card> cards(static_cast<size_t>(size));
  const auto bytes_of = [](Card* first, size_t count) {
    return Tensor(first, DType::u8, {static_cast<int64_t>(count * sizeof(Card))});
  };
  job_->all_gather(bytes_of(cards.data(), cards.size()), bytes_of(&mine, 1));
  const auto add = [&](Descriptor connection, int rank) {
    const Card& card = cards[static_cast<size_t>(rank)];
    const bool is_here = mine.machine[0] && std::strncmp(card.machine, mine.machine, sizeof(card.machine)) == 0;
    peers_.push_back({.connection = std::move(connection), .rank = rank, .process = is_here ? card.process : 0});
  };
  if (rank_ == 0) {
    int rank = 0;
    for (Descriptor& connection : accept_ranks(*acceptor, size, options.connect_s)) add(std::move(connection), ++rank);
  } else {
    add(connect_to_rank_0(cards[0], rank_, size), 0);
  }
  job_->barrier();
  last_turn_ = steady_clock::now();
  for (Peer& peer : peers_) peer.heard = last_turn_;
}

// --- sending, from any thread --------------------------------------------------------------------------------------

void Watch::send(const std::string& line) {
  // A connection that is full or closed takes nothing; receiving from it tells more.
  for (const Peer& peer : peers_) send_some(peer.connection, line.data(), static_cast<int64_t>(line.size()));
}

bool Watch::end() {
  if (std::exchange(ended_, true)) return false;
  answer_by_ = steady_clock::now() + duration_of(options_.answer_s);
  return true;
}

bool Watch::end(const std::string& line) {
  const std::lock_guard lock(mutex_);
  if (!end()) return false;
  send(line);
  return true;
}

void Watch::pass_on(const RankLoss& loss) {
  if (loss.rank == rank_) return;  // the others have it from this rank already
  const std::lock_guard lock(mutex_);
  send(line_of(kFailed, loss.reason));
}

void Watch::fail(const std::string& reason) {
  end(line_of(kFailed, without_own_name(reason)));
  wait_for_rank_0();
}

void Watch::close() { end(line_of(kBye)); }

void Watch::wait_for_rank_0() {
  if (rank_ == 0) return;
  std::unique_lock lock(mutex_);
  answer_.wait_until(lock, answer_by_, [&] { return answered_; });
}

// Rank 0 puts "rank 1 failed: " in front of what rank 1 says.
std::string Watch::without_own_name(const std::string& reason) const {
  const std::string name = str_cat("[parallel] rank ", rank_, " failed: ");
  return rank_ > 0 && reason.starts_with(name) ? reason.substr(name.size()) : reason;
}

// --- the thread in wait() ------------------------------------------------------------------------------------------

std::optional<RankLoss> Watch::wait() {
  const auto beat = duration_of(options_.beat_s);
  std::vector<pollfd> ready;
  while (std::ranges::any_of(peers_, &Peer::open)) {
    // Before poll(): if this process is stopped later in the turn, the heartbeats of that time are not missed.
    const Time now = steady_clock::now();
    // Nor are those of the time in which it was stopped, perhaps together with the peer.
    if (now - last_turn_ > 2 * beat)
      for (Peer& peer : peers_) peer.heard += now - last_turn_;
    last_turn_ = now;
    if (auto loss = own_failure(now)) return loss;
    if (now >= next_beat_) {
      next_beat_ = now + beat;
      const std::lock_guard lock(mutex_);
      send(line_of(kBeat));
    }
    ready.clear();
    Time until = now + beat / 2;
    for (const Peer& peer : peers_) {
      ready.push_back({peer.open ? peer.connection.fd() : -1, POLLIN, 0});
      if (peer.is_missed()) until = std::min(until, peer.heard + duration_of(options_.silence_s));
    }
    ::poll(ready.data(), ready.size(), milliseconds_until(until));
    for (size_t i = 0; i < peers_.size(); ++i)
      if (auto loss = ready[i].revents ? receive(peers_[i], now) : silence(peers_[i], now)) return loss;
  }
  return {};
}

// The communicators of this rank have failed, and its program has not said so in time.
std::optional<RankLoss> Watch::own_failure(Time now) {
  const std::string failure = job_->failure();
  if (failure.empty()) return {};
  if (!failed_at_) failed_at_ = now;
  if (now - *failed_at_ < duration_of(options_.own_words_s)) return {};
  if (!end(line_of(kFailed, without_own_name(failure)))) return {};
  return RankLoss{.rank = rank_, .reason = failure, .said = true};
}

// All that a rank has sent is received before the end of its connection.
std::optional<RankLoss> Watch::receive(Peer& peer, Time now) {
  char data[kMaxLine];
  const int64_t bytes = receive_some(peer.connection, data, sizeof(data));
  if (bytes < 0) {
    peer.open = false;
    answered(peer);
    if (peer.left) return {};
    return lose(peer, "has ended without a word: it was killed, or it crashed", false);
  }
  if (bytes > 0) peer.heard = now;
  peer.rest.append(data, static_cast<size_t>(bytes));
  for (size_t size; (size = peer.rest.find('\n')) != std::string::npos;) {
    const std::string line = peer.rest.substr(0, size);
    peer.rest.erase(0, size + 1);
    if (line.starts_with(kBye)) peer.left = true;
    if (!line.starts_with(kFailed)) continue;
    answered(peer);
    if (auto loss = lose(peer, line.substr(1), true)) return loss;
  }
  if (peer.rest.size() > kMaxLine) peer.rest.clear();
  return {};
}

std::optional<RankLoss> Watch::silence(Peer& peer, Time now) {
  if (!peer.is_missed() || now < peer.heard + duration_of(options_.silence_s)) return {};
  peer.left = true;
  answered(peer);
  const auto seconds = std::chrono::round<std::chrono::seconds>(now - peer.heard).count();
  return lose(peer, str_cat("has not answered for ", seconds, " s: it was stopped, or cut off"), false, peer.process);
}

std::optional<RankLoss> Watch::lose(const Peer& peer, std::string reason, bool said, int64_t process) {
  {
    const std::lock_guard lock(mutex_);
    if (!end()) return {};  // this rank is leaving itself, or knows already
  }
  // Rank 0 names the rank in what it passes on.
  if (peer.rank > 0 || !said) reason = str_cat("rank ", peer.rank, said ? " failed: " : " ", reason);
  return RankLoss{.rank = peer.rank, .reason = std::move(reason), .said = said, .process = process};
}

void Watch::answered(const Peer& peer) {
  if (peer.rank > 0) return;
  {
    const std::lock_guard lock(mutex_);
    answered_ = true;
  }
  answer_.notify_all();
}

}  // namespace longcat
