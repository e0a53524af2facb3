// The collectives by which ranks exchange data. A rank is a process, or in tests a thread. Each rank runs the same
// model on its share of the weights.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace longcat {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Returns a communicator of the ranks that call this with the same colour, in their order.
  virtual std::unique_ptr<Communicator> split(int color) = 0;

  // Tensors are contiguous. Blocks are equal parts of a tensor, one a rank.
  virtual void all_gather(Tensor out, Tensor x) = 0;  // block r of out = x of rank r
  virtual void all_to_all(Tensor out, Tensor x) = 0;  // block r of out = this rank's block of x of rank r
  virtual void broadcast(Tensor x, int root) = 0;
  virtual void barrier() = 0;

  // x: f32, bf16 or i32. The default body uses the calls above, for tensors in host memory.
  virtual void all_reduce(Tensor x);                  // x = sum of all x
  virtual void reduce_scatter(Tensor out, Tensor x);  // out = this rank's block of the sum of all x

  // How the ranks sum, for people; empty where there is one way.
  virtual std::string way_of_sums() const { return {}; }

  // Calls `launch`, which starts recorded work that holds calls of this communicator. Throws Error(reason) after an
  // abort.
  virtual void launch_recorded(const std::function<void()>& launch) { launch(); }

  // From any thread: what this rank waits for, now or later, throws Error(reason), the one of the first abort.
  virtual void abort(const std::string& reason) noexcept = 0;
  virtual std::string failure() const = 0;  // that reason, of any communicator of the job; empty: none

 private:
  std::vector<std::byte> scratch_;  // grows to the largest sum
};

// The only rank there is.
std::unique_ptr<Communicator> make_single_communicator();

// The ranks of an MPI job, as processes.
struct MpiJob {
  std::string library;  // its name and version
  std::unique_ptr<Communicator> world;
  std::function<void()> end;  // MPI_Finalize, unless the program has called MPI_Init itself

  void finalize();  // waits for all ranks; without it the launcher takes a process that ends for one that failed
};

// Joins once a process, for good. library: a file or name that dlopen takes, of Open MPI, MPICH, a library with MPICH's
// ABI, or one with the standard ABI of MPI 5. Throws Error when it cannot be loaded or started.
MpiJob join_mpi_job(const std::string& library);

// The rendezvous of a job without MPI: where and how its ranks find each other.
struct TcpRendezvous {
  std::string host;  // of rank 0, as the others reach it
  int port = 0;      // at which it listens
  int rank = 0, size = 1;
  bool one_machine = true;  // all ranks listen at the loopback address alone; `host` is not used
  std::string token;        // 64 bytes, known to the ranks alone: half identify the connecting side, half the answer
  double timeout_s = 30;    // for all ranks to connect
};

// The ranks of a job as processes that are connected by TCP, each with each.
class TcpJob {
 public:
  // Returns when all ranks are connected. Throws Error that names the ranks that are not, or cannot be reached.
  explicit TcpJob(const TcpRendezvous& rendezvous);

  Communicator& world() { return *world_; }

  void finalize();  // waits for all ranks: who leaves without is taken for lost by those who wait for it

 private:
  std::unique_ptr<Communicator> world_;
};

}  // namespace longcat
