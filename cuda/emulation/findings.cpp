#include "cuda/emulation/findings.h"

#include <cstdio>

namespace longcat::emulation {

const char* name_of(Finding kind) {
  switch (kind) {
    case Finding::unordered:
      return "unordered";
    case Finding::undelivered:
      return "undelivered";
    case Finding::uninitialised:
      return "uninitialised";
    case Finding::out_of_bounds:
      return "out of bounds";
    case Finding::misaligned:
      return "misaligned";
    case Finding::diverged:
      return "diverged";
    case Finding::deadlock:
      return "deadlock";
    case Finding::unfinished:
      return "unfinished";
    case Finding::unwaited:
      return "unwaited";
  }
  return "?";
}

std::string text_of(simt::Place place) {
  const std::string_view path = place.file ? place.file : "?";
  const size_t slash = path.rfind('/');
  return std::string(path.substr(slash == path.npos ? 0 : slash + 1)) + ":" + std::to_string(place.line);
}

void Findings::add(Finding kind, simt::Place place, simt::Place other, const std::string& text) {
  constexpr size_t kMostTexts = 20;
  ++counts_[static_cast<size_t>(kind)];
  const std::string_view file = place.file ? place.file : "", other_file = other.file ? other.file : "";
  if (seen_[{static_cast<int>(kind), file, place.line, other_file, other.line}]++ > 0) return;
  if (texts_.size() < kMostTexts) texts_.push_back(std::string(name_of(kind)) + ": " + text_of(place) + " " + text);
}

int64_t Findings::total() const {
  int64_t sum = 0;
  for (const int64_t count : counts_) sum += count;
  return sum;
}

std::string hex(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%x", value);
  return text;
}

}  // namespace longcat::emulation
