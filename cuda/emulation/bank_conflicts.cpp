#include "cuda/emulation/bank_conflicts.h"

#include <algorithm>

#include "cuda/emulation/findings.h"

namespace longcat::emulation {

Cycles bank_cycles(const std::array<int64_t, 32>& addresses, int bytes) {
  const int lanes = bytes <= 4 ? 32 : 128 / bytes;  // at a time
  Cycles all{0, 0};
  for (int first = 0; first < 32; first += lanes) {
    std::array<std::array<int64_t, 32>, 32> words;  // of each bank, different ones
    std::array<int, 32> count{};
    for (int lane = first; lane < first + lanes; ++lane) {
      if (addresses[static_cast<size_t>(lane)] < 0) continue;
      for (int64_t word = addresses[static_cast<size_t>(lane)] / 4;
           word < (addresses[static_cast<size_t>(lane)] + bytes + 3) / 4; ++word) {
        const size_t bank = static_cast<size_t>(word % 32);
        const auto end = words[bank].begin() + count[bank];
        if (std::find(words[bank].begin(), end, word) == end) words[bank][static_cast<size_t>(count[bank]++)] = word;
      }
    }
    const int most = *std::max_element(count.begin(), count.end());
    all.least += most > 0;
    all.taken += most;
  }
  return all;
}

void BankConflicts::add(const std::array<int64_t, 32>& addresses, int bytes, simt::Place place) {
  const Cycles cycles = bank_cycles(addresses, bytes);
  Count& count = counts_[{place.file, place.line}];
  ++count.accesses;
  count.least += cycles.least;
  count.taken += cycles.taken;
}

void BankConflicts::add(int64_t warp, int lane, uint32_t at, int bytes, simt::Place place) {
  Open& open = open_[{warp, place.file, place.line}];
  open.place = place;
  const int64_t number = open.counts[static_cast<size_t>(lane)]++;
  Access& access = open.accesses[number];
  if (access.lanes == 0) access.addresses.fill(-1);
  access.addresses[static_cast<size_t>(lane)] = at;
  access.bytes = bytes;
  if (++access.lanes < 32) return;
  add(access.addresses, access.bytes, place);
  open.accesses.erase(number);
}

void BankConflicts::finish() {
  for (const auto& [key, open] : open_)
    for (const auto& [number, access] : open.accesses) add(access.addresses, access.bytes, open.place);
  open_.clear();
}

int64_t BankConflicts::total() const {
  int64_t sum = 0;
  for (const auto& [key, count] : counts_) sum += count.taken - count.least;
  return sum;
}

int64_t BankConflicts::at_line(int line) const {
  int64_t sum = 0;
  for (const auto& [key, count] : counts_)
    if (key.second == line) sum += count.taken - count.least;
  return sum;
}

std::string BankConflicts::table() const {
  std::string text;
  for (const auto& [key, count] : counts_) {
    if (count.taken == count.least) continue;
    text += text_of({key.first, key.second}) + ": " + std::to_string(count.taken) + " cycles for " +
            std::to_string(count.accesses) + " accesses, least " + std::to_string(count.least) + "\n";
  }
  return text;
}

}  // namespace longcat::emulation
