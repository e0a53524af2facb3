#include "mutate.h"

#include <algorithm>
#include <cctype>
#include <string_view>

namespace longcat::fuzz {
namespace {

using Tokens = std::vector<std::string>;

// Numbers that parsers trip over: the edges of 32, 53, 63 and 64 bits, signs, fractions, overflow, non-numbers.
constexpr const char* kNumbers[] = {"0",
                                    "1",
                                    "-1",
                                    "-0",
                                    "2",
                                    "3",
                                    "255",
                                    "65536",
                                    "2147483647",
                                    "2147483648",
                                    "4294967295",
                                    "4294967296",
                                    "9007199254740993",
                                    "4611686018427387904",
                                    "9223372036854775807",
                                    "9223372036854775808",
                                    "-9223372036854775808",
                                    "-9223372036854775809",
                                    "18446744073709551615",
                                    "18446744073709551616",
                                    "340282366920938463463374607431768211456",
                                    "0.5",
                                    "1.0",
                                    "-1.5",
                                    "1e-400",
                                    "1e308",
                                    "1e309",
                                    "1e999999999",
                                    "5e-324",
                                    "00",
                                    "1.",
                                    "0x10",
                                    "NaN",
                                    "Infinity",
                                    "-Infinity",
                                    "null",
                                    "true",
                                    "false",
                                    "\"1\""};

// Strings with meaning to some parser, or trouble for a message.
constexpr const char* kStrings[] = {"\"\"",
                                    "\"__metadata__\"",
                                    "\"dtype\"",
                                    "\"shape\"",
                                    "\"data_offsets\"",
                                    "\"weight_map\"",
                                    "\"metadata\"",
                                    "\"F64\"",
                                    "\"BF16\"",
                                    "\"U8\"",
                                    "\"../x.safetensors\"",
                                    "\"/etc/x.safetensors\"",
                                    "\"..\\\\x.safetensors\"",
                                    "\"x\\u0000.safetensors\"",
                                    "\".safetensors\"",
                                    "\"x.bin\"",
                                    "\"\\u0000\"",
                                    "\"\\n\\r\\u001b[31m\"",
                                    "\"\\u2028\\u202e\"",
                                    "\"\\ud83d\\ude00\"",
                                    "\"\\ud800\"",
                                    "\"\xff\xfe\"",
                                    "\"\xed\xa0\x80\"",
                                    "\"\xc3\xa9\xe6\xbc\xa2\"",
                                    "\"LongcatCausalLM\"",
                                    "\"LongcatNextForCausalLM\"",
                                    "\"LongcatFlashForCausalLM\"",
                                    "\"longcat_flash\"",
                                    "\"architectures\"",
                                    "\"model_type\"",
                                    "\"num_layers\"",
                                    "\"num_hidden_layers\"",
                                    "\"index_topk\"",
                                    "\"rope_theta\"",
                                    "\"rope_scaling\"",
                                    "\"rope_parameters\"",
                                    "\"rope_type\"",
                                    "\"type\"",
                                    "\"default\"",
                                    "\"yarn\"",
                                    "\"linear\"",
                                    "\"eos_token_id\"",
                                    "\"quantization_config\"",
                                    "\"gptq\"",
                                    "\"fp8\"",
                                    "\"weight_block_size\"",
                                    "\"oe_split_num\"",
                                    "\"emb_split_num\""};

template <class T, size_t n>
const T& pick(const T (&items)[n], Random& random) {
  return items[below(random, n)];
}

// Strings, words and numbers whole, every other byte alone; joined again they give `text`.
Tokens split(std::string_view text) {
  const auto is_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '+' || c == '-';
  };
  Tokens tokens;
  tokens.reserve(text.size() / 2);
  for (size_t at = 0; at < text.size();) {
    size_t end = at + 1;
    if (text[at] == '"') {
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
    } else if (is_word(text[at])) {
      while (end < text.size() && is_word(text[end])) ++end;
    }
    tokens.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return tokens;
}

std::string join(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

// A random position of a token that begins with one of `first`, or any token when there is none.
size_t find_token(const Tokens& tokens, std::string_view first, Random& random) {
  const size_t start = below(random, tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const size_t at = (start + i) % tokens.size();
    if (first.find(tokens[at][0]) != first.npos) return at;
  }
  return start;
}

// A run of tokens, up to the matching bracket when it begins with one.
size_t end_of_value(const Tokens& tokens, size_t at) {
  int depth = 0;
  for (size_t i = at; i < tokens.size(); ++i) {
    depth += tokens[i] == "{" || tokens[i] == "[";
    depth -= tokens[i] == "}" || tokens[i] == "]";
    if (depth <= 0) return i + 1;
  }
  return tokens.size();
}

std::string hostile_string(Random& random) {
  if (below(random, 8)) return pick(kStrings, random);
  const size_t length = below(random, 1000) ? below(random, 200) : below(random, 100'000);
  std::string text = "\"";
  const uint64_t kind = below(random, 3);
  for (size_t i = 0; i < length; ++i)
    text += kind == 0 ? 'x' : static_cast<char>(kind == 1 ? 0x20 + below(random, 0x5f) : below(random, 256));
  return text + '"';
}

void nest(Tokens& tokens, Random& random) {
  const size_t at = below(random, tokens.size()), end = end_of_value(tokens, at);
  const size_t depth = below(random, 1000) ? 1 + below(random, 20) : below(random, 50'000);
  const bool object = below(random, 2);
  std::string open, close;
  for (size_t i = 0; i < depth; ++i) {
    open += object ? "{\"a\":" : "[";
    close += object ? '}' : ']';
  }
  tokens[at] = open + tokens[at];
  if (below(random, 4)) tokens[end - 1] += close;  // else left open
}

void mutate_tokens(Seed& seed, const std::vector<Seed>& donors, Random& random) {
  Tokens tokens = split(seed.text);
  if (tokens.empty()) return;
  switch (below(random, 9)) {
    case 0:
      tokens[find_token(tokens, "0123456789-", random)] = pick(kNumbers, random);
      break;
    case 1:
      tokens[find_token(tokens, "\"", random)] = hostile_string(random);
      break;
    case 2: {  // a field twice, or moved
      const size_t at = find_token(tokens, "\"", random), end = std::min(end_of_value(tokens, at) + 3, tokens.size());
      Tokens copy(tokens.begin() + at, tokens.begin() + end);
      copy.push_back(",");
      const size_t to = below(random, 2) ? at : find_token(tokens, "\"", random);
      tokens.insert(tokens.begin() + to, copy.begin(), copy.end());
      break;
    }
    case 3: {  // a value goes
      const size_t at = below(random, tokens.size()), end = end_of_value(tokens, at);
      tokens.erase(tokens.begin() + at, tokens.begin() + end);
      break;
    }
    case 4:
      std::swap(tokens[below(random, tokens.size())], tokens[below(random, tokens.size())]);
      break;
    case 5:
      nest(tokens, random);
      break;
    case 6: {  // a run from another text
      const Tokens donor = split(donors[below(random, donors.size())].text);
      if (donor.empty()) break;
      const size_t at = below(random, donor.size()), end = std::min(at + 1 + below(random, 30), donor.size());
      tokens.insert(tokens.begin() + below(random, tokens.size() + 1), donor.begin() + at, donor.begin() + end);
      break;
    }
    case 7: {  // a value for another value
      const size_t at = find_token(tokens, ":,[", random) + 1;
      if (at >= tokens.size()) break;
      const size_t end = end_of_value(tokens, at);
      tokens[at] = below(random, 2) ? pick(kNumbers, random) : hostile_string(random);
      tokens.erase(tokens.begin() + at + 1, tokens.begin() + end);
      break;
    }
    case 8: {  // a number a little off
      std::string& token = tokens[find_token(tokens, "0123456789", random)];
      token.back() = static_cast<char>('0' + below(random, 10));
      break;
    }
  }
  seed.text = join(tokens);
}

void mutate_bytes(Seed& seed, Random& random) {
  std::string& text = seed.text;
  if (text.empty()) return;
  const size_t at = below(random, text.size());
  switch (below(random, 5)) {
    case 0:
      text[at] = static_cast<char>(text[at] ^ (1 << below(random, 8)));
      break;
    case 1:
      text[at] = static_cast<char>(below(random, 256));
      break;
    case 2:
      text.resize(at);
      break;
    case 3:
      text.insert(at, 1 + below(random, 8), static_cast<char>(below(random, 256)));
      break;
    case 4:
      text.erase(at, 1 + below(random, 16));
      break;
  }
}

}  // namespace

void mutate(Seed& seed, const std::vector<Seed>& donors, Random& random) {
  const uint64_t choice = below(random, 16);
  if (choice == 0) {
    constexpr uint64_t kSizes[] = {0, 1, uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}};
    seed.data_bytes = below(random, 2) ? seed.data_bytes + below(random, 17) - 8 : pick(kSizes, random);
  } else if (choice < 4) {
    mutate_bytes(seed, random);
  } else {
    mutate_tokens(seed, donors, random);
  }
}

}  // namespace longcat::fuzz
