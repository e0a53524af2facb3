// N-gram rows by where their tables lie: device memory, or host memory that the kernel reads over the bus, on pages of
// 2 MiB and of 4 KiB. A row is 512 bytes, a token takes 12.
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/device/check.h"
#include "model/weights.h"
#include "suites.h"

namespace longcat {

namespace {

// Pinned host memory on small pages, which no allocation of the backend gives.
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

void measure(Bench& b, const char* where, const char* memory, int64_t table_rows) {
  const ModelConfig& c = b.config();
  const NgramConfig n{.table_rows = table_rows, .emb_neighbor_num = 4, .emb_split_num = 4};
  const int64_t width = c.hidden_size / n.num_tables(), max_tokens = b.check() ? 5 : 2048;
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
  BatchMaker batches(b, max_tokens, 1, max_tokens);
  const Buffer ids(b.device(), max_tokens * n.num_tables() * 4), rows(b.device(), max_tokens * c.hidden_size * 2),
      lane(b.device(), batches.num_blocks() * kBlockSize * 4);
  for (const int64_t tokens : b.check() ? std::vector<int64_t>{1, 5} : std::vector<int64_t>{1, 16, 256, 2048}) {
    const ForwardBatch batch = batches.prompt(tokens, 0);
    const double us = b.time(
        [&] {
          b.ops().ngram_lookup(ids.tensor(DType::i32, {tokens, n.num_tables()}),
                               rows.tensor(DType::bf16, {tokens, c.hidden_size}),
                               lane.tensor(DType::i32, {batches.num_blocks() * kBlockSize}), batch, ngram);
        },
        true);
    const double count = static_cast<double>(tokens * n.num_tables());
    std::printf("| %s | %ld | %.1f | %.1f | %.2f |\n", where, tokens, us, count / us,
                count * static_cast<double>(width) * 2 / us / 1e3);
    std::fflush(stdout);
  }
}

}  // namespace

void bench_gather(Bench& b) {
  const int64_t table_rows = b.check() ? 500 : 1'400'000;  // 12 tables of 0.7 GB: far more than caches and TLBs hold
  const int64_t width = b.config().hidden_size / b.config().ngram->num_tables();
  const int64_t bytes = 12 * (table_rows + 25) * width * 2;
  std::printf("\n| 12 tables in | tokens | us | rows/us | GB/s |\n| --- | --- | --- | --- | --- |\n");
  {
    const Buffer device = b.random(bytes);
    measure(b, "device memory", static_cast<const char*>(device.data()), table_rows);
  }
  {
    const HostBuffer huge(b.device(), bytes);
    measure(b, "host memory, 2 MiB pages", static_cast<const char*>(huge.data()), table_rows);
  }
  if (b.check()) return;
  const SmallPages small(bytes);
  measure(b, "host memory, 4 KiB pages", static_cast<const char*>(small.data()), table_rows);
}

}  // namespace longcat
