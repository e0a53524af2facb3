#include "comm/communicator.h"

#include <algorithm>
#include <cstring>

namespace longcat {

namespace {

// Up to this size each rank sums everything. Above it each rank sums its block, which costs a second exchange and moves
// less.
constexpr int64_t kSmallBytes = 32 << 10;

template <class T>
T rounded(float sum);
template <>
float rounded<float>(float sum) {
  return sum;
}
template <>
bf16 rounded<bf16>(float sum) {
  return to_bf16(sum);
}

template <class T>
void sum_blocks(T* out, const T* blocks, int64_t count, int64_t num_blocks) {
  constexpr int64_t kAtOnce = 512;
  float sums[kAtOnce];
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    const int64_t n = std::min(kAtOnce, count - begin);
    for (int64_t i = 0; i < n; ++i) sums[i] = to_float(blocks[begin + i]);
    for (int64_t b = 1; b < num_blocks; ++b)
      for (int64_t i = 0; i < n; ++i) sums[i] += to_float(blocks[b * count + begin + i]);
    for (int64_t i = 0; i < n; ++i) out[begin + i] = rounded<T>(sums[i]);
  }
}

template <>
void sum_blocks(int32_t* out, const int32_t* blocks, int64_t count, int64_t num_blocks) {
  for (int64_t i = 0; i < count; ++i) {
    int32_t sum = blocks[i];
    for (int64_t b = 1; b < num_blocks; ++b) sum += blocks[b * count + i];
    out[i] = sum;
  }
}

// out [count] = sum of `num_blocks` blocks of `count` elements, ascending. out may be the first block.
void sum_blocks(void* out, const void* blocks, DType dtype, int64_t count, int64_t num_blocks) {
  switch (dtype) {
    case DType::f32:
      return sum_blocks(static_cast<float*>(out), static_cast<const float*>(blocks), count, num_blocks);
    case DType::bf16:
      return sum_blocks(static_cast<bf16*>(out), static_cast<const bf16*>(blocks), count, num_blocks);
    case DType::i32:
      return sum_blocks(static_cast<int32_t*>(out), static_cast<const int32_t*>(blocks), count, num_blocks);
    default:
      throw Error(str_cat("[internal] ", name_of(dtype), " is not summed over ranks"));
  }
}

std::byte* grown(std::vector<std::byte>& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(static_cast<size_t>(bytes));
  return buffer.data();
}

class SingleCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::unique_ptr<Communicator> split(int) override { return make_single_communicator(); }
  void all_gather(Tensor out, Tensor x) override {
    std::memcpy(out.raw(), x.raw(), static_cast<size_t>(x.num_bytes()));
  }
  void all_to_all(Tensor out, Tensor x) override { all_gather(out, x); }
  void broadcast(Tensor, int) override {}
  void barrier() override {}
  void all_reduce(Tensor) override {}
  void reduce_scatter(Tensor out, Tensor x) override { all_gather(out, x); }
  void abort(const std::string&) noexcept override {}  // no other rank is waited for
  std::string failure() const override { return {}; }
};

}  // namespace

void Communicator::all_reduce(Tensor x) {
  LC_CHECK(x.is_contiguous());
  const int64_t count = x.numel(), ranks = size(), element = size_of(x.dtype());
  if (x.num_bytes() <= kSmallBytes) {
    void* all = grown(scratch_, ranks * count * element);
    all_gather(Tensor(all, x.dtype(), {ranks * count}), x);
    return sum_blocks(x.raw(), all, x.dtype(), count, ranks);
  }
  const int64_t block = (count + ranks - 1) / ranks;  // the last one is filled up with what lies there
  std::byte* mine = grown(scratch_, 2 * ranks * block * element);
  std::byte* theirs = mine + ranks * block * element;
  std::memcpy(mine, x.raw(), static_cast<size_t>(x.num_bytes()));
  const Tensor all(mine, x.dtype(), {ranks * block}), received(theirs, x.dtype(), {ranks * block});
  all_to_all(received, all);
  sum_blocks(theirs, theirs, x.dtype(), block, ranks);
  all_gather(all, received.first(block));
  std::memcpy(x.raw(), mine, static_cast<size_t>(x.num_bytes()));
}

void Communicator::reduce_scatter(Tensor out, Tensor x) {
  LC_CHECK(x.is_contiguous() && out.is_contiguous() && x.numel() == out.numel() * size(), out.shape_string(), " of ",
           x.shape_string(), " on ", size(), " ranks");
  void* all = grown(scratch_, x.num_bytes());
  all_to_all(Tensor(all, x.dtype(), {x.numel()}), x);
  sum_blocks(out.raw(), all, x.dtype(), out.numel(), size());
}

std::unique_ptr<Communicator> make_single_communicator() { return std::make_unique<SingleCommunicator>(); }

}  // namespace longcat
