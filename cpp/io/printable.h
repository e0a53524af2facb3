// Makes text from files fit for an error message: one line, valid UTF-8, short.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

namespace longcat {

// The code point at the start of `text` and the length of its UTF-8 sequence [bytes]; length 0 when it is not valid.
struct CodePoint {
  size_t length = 0;
  uint32_t value = 0;
};

inline CodePoint first_code_point(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (text.empty()) return {};
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, lead};
  const size_t length = lead >= 0xf5 ? 0 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 0;
  if (length == 0 || text.size() < length) return {};
  uint32_t value = lead & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  return value < kSmallest[length] || surrogate || value > 0x10ffff ? CodePoint{} : CodePoint{length, value};
}

// Whether a code point could break or forge a log line: control characters, line separators and marks that reorder
// text.
inline bool is_unprintable(uint32_t c) {
  return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0xfeff || (c >= 0x200b && c <= 0x200f) ||
         (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfffe || c == 0xffff;
}

// Returns `text` with unprintable characters and invalid bytes escaped, cut after about `max_bytes`.
inline std::string printable(std::string_view text, size_t max_bytes = 80) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    if (out.size() >= max_bytes) return out + "... (" + std::to_string(text.size()) + " bytes)";
    const CodePoint c = first_code_point(text.substr(at));
    char escape[16];
    if (c.length == 0) {
      std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(static_cast<uint8_t>(text[at])));
      out += escape;
      at += 1;
    } else if (is_unprintable(c.value)) {
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c.value));
      out += escape;
      at += c.length;
    } else {
      out.append(text, at, c.length);
      at += c.length;
    }
  }
  return out;
}

inline std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

// As printable(), with more room, because paths differ at their ends.
inline std::string printable_path(const std::filesystem::path& path) { return printable(path.native(), 1024); }

}  // namespace longcat
