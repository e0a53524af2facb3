// Ranks that watch each other: when one dies or stops, the others learn of it within seconds.
//
// Every other rank connects to rank 0. Both ends of a connection send a heartbeat twice a second. A rank is lost after
// four seconds of silence, or at once when its connection ends without a farewell. A rank that fails sends its reason
// first, and rank 0 passes it on. What follows from a loss is the caller's decision.
//
// Threads: the constructor makes the connections, and the destructor closes them. One thread calls wait(): it alone
// receives, and the state of a peer belongs to it. Any thread may send, under the mutex.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/sockets.h"

namespace longcat {

struct WatchOptions {
  std::vector<std::string> hosts = {};  // of rank 0, the first that answers counts; none: all ranks are on one machine
  double beat_s = 0.5;                  // between two heartbeats
  double silence_s = 4;                 // after which a rank is lost
  double connect_s = 30;                // for all ranks to connect
  double own_words_s = 1.5;             // for a rank whose communicators have failed to say so itself, by fail()
  double answer_s = 3;                  // for rank 0 to speak, when this rank ends
};

// Why the job ends.
struct RankLoss {
  int rank;             // that is lost
  std::string reason;   // one line that names the rank
  bool said;            // the rank gave the reason itself
  int64_t process = 0;  // of a silent rank on this machine: a stopped process outlives its launcher. Else 0
};

class Watch {
 public:
  // Every rank of the job makes its watch at the same time; rank 0's hosts count. Throws Error when a rank cannot
  // connect.
  Watch(std::shared_ptr<Communicator> job, const WatchOptions& options);

  // Returns the first loss once; after it, and after fail() and close(), nothing, when all connections have ended.
  std::optional<RankLoss> wait();

  // Tells a loss to the ranks that are connected to this one. Call it when this rank has acted on the loss: the others
  // end then, and the launcher may end this rank with them.
  void pass_on(const RankLoss& loss);

  // Tells the others why this rank ends, unless that is known, and waits for rank 0 to hear of it.
  void fail(const std::string& reason);
  // Tells the others that this rank is done: they do not miss it.
  void close();
  // Returns when rank 0 knows that the job ends: a launcher ends all ranks after the first one. At most answer_s after
  // this rank knew.
  void wait_for_rank_0();

 private:
  using Time = Deadline;

  struct Peer {
    Descriptor connection;
    int rank;
    int64_t process;  // 0: on another machine
    Time heard = {};
    bool open = true, left = false;
    std::string rest = {};  // of a line

    bool is_missed() const { return open && !left; }  // when it is silent
  };

  std::optional<RankLoss> own_failure(Time now);
  std::optional<RankLoss> receive(Peer& peer, Time now);
  std::optional<RankLoss> silence(Peer& peer, Time now);
  std::optional<RankLoss> lose(const Peer& peer, std::string reason, bool said, int64_t process = 0);
  bool end();                         // from now on no loss is reported; false: that is so already
  bool end(const std::string& line);  // sends this rank's last line, too
  void send(const std::string& line);
  void answered(const Peer& peer);  // if it is rank 0: it need not be waited for
  std::string without_own_name(const std::string& reason) const;

  const std::shared_ptr<Communicator> job_;
  const WatchOptions options_;
  const int rank_;
  std::vector<Peer> peers_;  // of rank 0 all others; of the others rank 0. Fixed, but for what wait() owns of each
  // Of the thread in wait():
  Time next_beat_ = {}, last_turn_ = {};
  std::optional<Time> failed_at_;

  std::mutex mutex_;
  std::condition_variable answer_;
  bool ended_ = false;     // this rank has sent its last line, or knows of a loss
  Time answer_by_ = {};    // since then
  bool answered_ = false;  // rank 0 has spoken, or is gone
};

}  // namespace longcat
