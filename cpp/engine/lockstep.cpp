#include "engine/lockstep.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <type_traits>

namespace longcat {

namespace {

using Kind = Lockstep::Message::Kind;

constexpr int64_t kFirstBytes = 4096;  // [bytes] broadcast together with the size: enough for most steps

// Writes fields one after the other, as they lie in memory: all ranks run the same program.
class Writer {
 public:
  template <class T>
  void operator()(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(T));
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
  }
  template <class T>
  void operator()(const std::vector<T>& values) {
    (*this)(static_cast<int64_t>(values.size()));
    for (const T& value : values) (*this)(value);
  }
  void operator()(const std::string& text) { (*this)(std::vector<char>(text.begin(), text.end())); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  void operator()(T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    LC_CHECK(bytes_.size() >= sizeof(T));
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
  }
  template <class T>
  void operator()(std::vector<T>& values) {
    int64_t size;
    (*this)(size);
    LC_CHECK(0 <= size && size <= static_cast<int64_t>(bytes_.size()));
    values.resize(static_cast<size_t>(size));
    for (T& value : values) (*this)(value);
  }
  void operator()(std::string& text) {
    std::vector<char> characters;
    (*this)(characters);
    text.assign(characters.begin(), characters.end());
  }

 private:
  std::span<const std::byte> bytes_;
};

// The fields of each part of a plan. The writer and the reader both use these lists.
template <class Archive, class Sequence>
void transfer_sequence(Archive& a, Sequence& s) {
  a(s.num_prompt_tokens);
  a(s.mask);
  for_each_field(s.params, [&](const char*, auto& field) { a(field); });
}

template <class Archive, class Chunk>
void transfer_chunk(Archive& a, Chunk& c) {
  a(c.start);
  a(c.count);
  a(c.generated);
  a(c.source);
  a(c.token_ids);
  a(c.blocks);
  a(c.score_begin);
  a(c.score_end);
  a(c.score_ids);
  a(c.is_drawn_from);
  a(c.num_draft_tokens);
  a(c.next_token_id);
  a(c.num_next_drafts);
}

template <class Archive, class Draw>
void transfer_draw(Archive& a, Draw& d) {
  a(d.chunk);
  a(d.num_drafts);
  a(d.num_tokens);
  a(d.ends);
}

template <class Archive, class Logprobs>
void transfer_logprobs(Archive& a, Logprobs& l) {
  a(l.rank);
  a(l.ids);
  a(l.logprobs);
}

template <class Archive, class Output>
void transfer_output(Archive& a, Output& o) {
  a(o.request_id);
  a(o.token_id);
  a(o.finish_reason);
  a(o.error);
  a(o.stats);
}

void write_outputs(Writer& out, const std::vector<StepOutput>& outputs) {
  out(static_cast<int64_t>(outputs.size()));
  for (const StepOutput& output : outputs) {
    transfer_output(out, output);
    out(output.logprobs.has_value());
    if (output.logprobs) transfer_logprobs(out, *output.logprobs);
    out(static_cast<int64_t>(output.prompt_logprobs.size()));
    for (const TokenLogprobs& one : output.prompt_logprobs) transfer_logprobs(out, one);
  }
}

std::vector<StepOutput> read_outputs(Reader& in) {
  std::vector<StepOutput> outputs;
  const auto size = [&] {
    int64_t value;
    in(value);
    return value;
  };
  for (int64_t left = size(); left > 0; --left) {
    StepOutput& output = outputs.emplace_back();
    transfer_output(in, output);
    bool has_logprobs;
    in(has_logprobs);
    if (has_logprobs) transfer_logprobs(in, output.logprobs.emplace());
    for (int64_t more = size(); more > 0; --more) transfer_logprobs(in, output.prompt_logprobs.emplace_back());
  }
  return outputs;
}

void write_plan(Writer& out, const StepPlan& plan) {
  std::map<const Sequence*, int32_t> numbers;
  std::vector<const Sequence*> sequences;
  const auto number = [&](const std::shared_ptr<Sequence>& sequence) {
    const auto [it, added] = numbers.try_emplace(sequence.get(), static_cast<int32_t>(sequences.size()));
    if (added) sequences.push_back(sequence.get());
    return it->second;
  };
  for (const PlannedChunk& chunk : plan.chunks) number(chunk.sequence);
  for (const PlannedDraw& draw : plan.draws) number(draw.sequence);

  out(plan.moves);
  out(static_cast<int64_t>(sequences.size()));
  for (const Sequence* sequence : sequences) transfer_sequence(out, *sequence);
  out(static_cast<int64_t>(plan.chunks.size()));
  for (const PlannedChunk& chunk : plan.chunks) {
    out(number(chunk.sequence));
    transfer_chunk(out, chunk);
  }
  out(static_cast<int64_t>(plan.draws.size()));
  for (const PlannedDraw& draw : plan.draws) {
    out(number(draw.sequence));
    transfer_draw(out, draw);
  }
}

StepPlan read_plan(Reader& in) {
  StepPlan plan;
  const auto size = [&] {
    int64_t value;
    in(value);
    return value;
  };
  in(plan.moves);
  std::vector<std::shared_ptr<Sequence>> sequences;
  for (int64_t left = size(); left > 0; --left)
    transfer_sequence(in, *sequences.emplace_back(std::make_shared<Sequence>()));
  const auto sequence = [&] {
    int32_t number;
    in(number);
    return sequences.at(static_cast<size_t>(number));
  };
  for (int64_t left = size(); left > 0; --left) {
    PlannedChunk& chunk = plan.chunks.emplace_back();
    chunk.sequence = sequence();
    transfer_chunk(in, chunk);
  }
  for (int64_t left = size(); left > 0; --left) {
    PlannedDraw& draw = plan.draws.emplace_back();
    draw.sequence = sequence();
    transfer_draw(in, draw);
  }
  return plan;
}

}  // namespace

std::vector<std::byte> encode(const std::vector<StepOutput>& outputs, const StepPlan& plan) {
  Writer out;
  write_outputs(out, outputs);
  write_plan(out, plan);
  return out.take();
}

void Lockstep::require_same(uint64_t fingerprint, const char* what) {
  std::vector<int64_t> all(static_cast<size_t>(control_->size()));
  int64_t mine = static_cast<int64_t>(fingerprint);
  control_->all_gather(Tensor(all.data(), DType::i64, {control_->size()}), Tensor(&mine, DType::i64, {1}));
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      throw Error(str_cat("[parallel] rank ", rank, " has other ", what, " than rank 0: give all ranks the same"));
}

int64_t Lockstep::least(int64_t value) {
  std::vector<int64_t> all(static_cast<size_t>(control_->size()));
  control_->all_gather(Tensor(all.data(), DType::i64, {control_->size()}), Tensor(&value, DType::i64, {1}));
  return *std::min_element(all.begin(), all.end());
}

// Broadcasts the size with the first bytes, then the rest if there is any.
void Lockstep::broadcast(std::vector<std::byte>& bytes) {
  std::vector<std::byte> first(static_cast<size_t>(kFirstBytes) + 8);
  int64_t size = static_cast<int64_t>(bytes.size());
  const auto head = static_cast<size_t>(std::min(size, kFirstBytes));
  std::memcpy(first.data(), &size, 8);
  std::copy_n(bytes.begin(), head, first.begin() + 8);
  control_->broadcast(Tensor(first.data(), DType::u8, {kFirstBytes + 8}), 0);
  if (!leads()) {
    std::memcpy(&size, first.data(), 8);
    bytes.resize(static_cast<size_t>(size));
    std::copy_n(first.begin() + 8, std::min(size, kFirstBytes), bytes.begin());
  }
  if (size > kFirstBytes) control_->broadcast(Tensor(bytes.data() + kFirstBytes, DType::u8, {size - kFirstBytes}), 0);
}

void Lockstep::send(std::vector<std::byte> step) {
  step.push_back(std::byte{static_cast<uint8_t>(Kind::step)});
  broadcast(step);
}

void Lockstep::send_forward(const Chunk& chunk) {
  Writer out;
  out(std::vector<int32_t>(chunk.token_ids.begin(), chunk.token_ids.end()));
  out(std::vector<int32_t>(chunk.blocks.begin(), chunk.blocks.end()));
  out(chunk.start);
  out(Kind::forward);
  std::vector<std::byte> bytes = out.take();
  broadcast(bytes);
}

void Lockstep::send_stop() {
  std::vector<std::byte> bytes{std::byte{static_cast<uint8_t>(Kind::stop)}};
  broadcast(bytes);
}

Lockstep::Message Lockstep::receive() {
  std::vector<std::byte> bytes;
  broadcast(bytes);
  LC_CHECK(!bytes.empty());
  Message message;
  message.kind = static_cast<Kind>(bytes.back());
  Reader in(bytes);
  if (message.kind == Kind::step) {
    message.outputs = read_outputs(in);
    message.plan = read_plan(in);
  }
  if (message.kind == Kind::forward) {
    in(message.token_ids);
    in(message.blocks);
    in(message.start);
  }
  return message;
}

}  // namespace longcat
