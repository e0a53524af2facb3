// Times the gather of N-gram rows by the place of their tables. That is device memory, or host memory that the kernel
// reads over the bus, on pages of 2 MiB and of 4 KiB. A row has 512 bytes, and a token takes 12 rows.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>

#include "cuda/device/check.h"
#include "model/weights.h"
#include "suites.h"

namespace longcat {

namespace {

// Pinned host memory on small pages. The backend itself uses huge pages.
class SmallPages {
 public:
  explicit SmallPages(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw OutOfMemory(str_cat("no ", bytes, " bytes of host memory"));
    ::madvise(data_, bytes_, MADV_NOHUGEPAGE);
    CUDA_CHECK(cudaHostRegister(data_, bytes_, cudaHostRegisterPortable | cudaHostRegisterMapped));
  }
  ~SmallPages() {
    cudaHostUnregister(data_);
    ::munmap(data_, bytes_);
  }
  SmallPages(const SmallPages&) = delete;
  SmallPages& operator=(const SmallPages&) = delete;

  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

// Returns the bandwidth of the bus [bytes/us], measured by copies from pinned host memory; 1 on the emulated device.
double bus_rate(Bench& b, const Buffer& device, const HostBuffer& host) {
  if (b.check()) return 1;
  const int64_t bytes = std::min<int64_t>(device.bytes(), int64_t{1} << 30);
  const double us = b.time(
      [&] {
        CUDA_CHECK(cudaMemcpyAsync(device.data(), host.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                                   static_cast<cudaStream_t>(b.device().stream())));
      },
      false);
  return static_cast<double>(bytes) / us;
}

// rate: bandwidth of the memory that holds the rows [bytes/us].
void measure(Bench& b, Report& report, const std::string& where, const char* memory, double rate) {
  const ModelConfig& c = b.config();
  const NgramConfig& n = *c.ngram;
  constexpr int64_t kMaxTokens = 2048;
  const int64_t width = c.hidden_size / n.num_tables();
  std::vector<Weight> tables;
  std::vector<int64_t> moduli, powers;
  for (int64_t t = 0; t < n.num_tables(); ++t) {
    tables.push_back({.format = WeightFormat::bf16,
                      .out_features = n.rows_of(t),
                      .in_features = width,
                      .data = memory + t * n.rows_of(n.num_tables()) * width * 2});
    moduli.push_back(n.rows_of(t));
    append_powers(powers, c.vocab_size, n.rows_of(t), n.emb_neighbor_num);
  }
  const NgramTables ngram{
      .tables = tables, .moduli = moduli, .powers = powers, .max_order = n.emb_neighbor_num, .splits = n.emb_split_num};
  BatchMaker batches(b, kMaxTokens, 1, kMaxTokens);
  const Buffer ids(b.device(), kMaxTokens * n.num_tables() * 4), rows(b.device(), kMaxTokens * c.hidden_size * 2),
      lane(b.device(), batches.num_blocks() * kBlockSize * 4);
  for (const int64_t tokens : {1, 16, 256, 2048}) {
    const std::string what = str_cat(where, ", ", tokens, tokens == 1 ? " token" : " tokens");
    if (!report.has_time(what, 0.1)) continue;
    const ForwardBatch batch = batches.prompt(tokens);
    const double us = b.time(
        [&] {
          b.ops().ngram_lookup(ids.tensor(DType::i32, {tokens, n.num_tables()}),
                               rows.tensor(DType::bf16, {tokens, c.hidden_size}),
                               lane.tensor(DType::i32, {batches.num_blocks() * kBlockSize}), batch, ngram);
        },
        true, 0.2);
    const double bytes = static_cast<double>(tokens * n.num_tables() * width * 2);
    report.row(what, us, "us", bytes / rate / us);
  }
}

}  // namespace

void bench_gather(Bench& b, Report& report) {
  const NgramConfig& n = *b.config().ngram;
  const int64_t bytes = n.num_tables() * n.rows_of(n.num_tables()) * (b.config().hidden_size / n.num_tables()) * 2;
  report.header("12 rows a token from");
  const Buffer device = b.random(bytes);
  const HostBuffer huge(b.device(), bytes);
  b.randomise(huge.data(), bytes);
  const double rate = bus_rate(b, device, huge);
  report.row("copy from the host", rate / 1e3, "GB/s");
  measure(b, report, "host memory, 2 MiB pages", static_cast<const char*>(huge.data()), rate);
  measure(b, report, "device memory", static_cast<const char*>(device.data()), b.peak_bytes());
  if (b.check()) return;
  const SmallPages small(bytes);
  b.randomise(small.data(), bytes);
  measure(b, report, "host memory, 4 KiB pages", static_cast<const char*>(small.data()), rate);
}

}  // namespace longcat
