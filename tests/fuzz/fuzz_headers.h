// What one fuzz input means, shared by the target and the driver.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longcat::fuzz {

enum class Parser : uint8_t { header, index, config };
constexpr int kNumParsers = 3;

// An input: one byte that chooses the parser, 8 bytes of `data_bytes` (little-endian; used by the header parser), the
// text.
constexpr size_t kPrefixBytes = 9;
std::string make_input(Parser parser, uint64_t data_bytes, std::string_view text);

// True when the parser accepts the input, false when it throws longcat::Error. Anything else ends the process: another
// exception, an accepted input that breaks a promise of the headers, an error message unfit for a log.
bool accepts(const uint8_t* data, size_t size);

}  // namespace longcat::fuzz
