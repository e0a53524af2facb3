// The command line of a benchmark: at most one word, which is a checkpoint in most, and options with or without a
// value.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"

namespace longcat::bench {

class CommandLine {
 public:
  // flags: the options that have no value. Throws std::invalid_argument when another option lacks its value, or there
  // is a second word.
  CommandLine(int argc, char** argv, const std::set<std::string>& flags = {}) {
    for (int i = 1; i < argc; ++i) {
      const std::string name = argv[i];
      if (flags.contains(name)) {
        flags_.insert(name);
      } else if (!name.starts_with("--")) {
        if (!checkpoint_.empty()) throw std::invalid_argument(str_cat(checkpoint_, " and ", name, ": expected one"));
        checkpoint_ = name;
      } else if (i + 1 == argc) {
        throw std::invalid_argument(str_cat(name, " needs a value"));
      } else {
        options_[name] = argv[++i];
      }
    }
  }

  const std::string& checkpoint() const {
    if (checkpoint_.empty()) throw std::invalid_argument("which checkpoint?");
    return checkpoint_;
  }

  const std::string& checkpoint_or_empty() const { return checkpoint_; }

  bool flag(const std::string& name) const { return flags_.contains(name); }

  // Returns the value of an option, or `fallback`. The option counts as known from then on.
  std::string text(const std::string& name, const std::string& fallback) {
    const auto option = options_.extract(name);
    return option ? option.mapped() : fallback;
  }
  int64_t number(const std::string& name, int64_t fallback) {
    const std::string value = text(name, "");
    return value.empty() ? fallback : to_number(name, value);
  }
  // A list such as "int8_x8,int4_x8".
  std::vector<std::string> words(const std::string& name, std::vector<std::string> fallback) {
    const std::string value = text(name, "");
    if (value.empty()) return fallback;
    std::vector<std::string> list;
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find(',', begin), value.size());
      list.push_back(value.substr(begin, end - begin));
      begin = end + 1;
    }
    return list;
  }
  // A list such as "1,8,64".
  std::vector<int64_t> numbers(const std::string& name, std::vector<int64_t> fallback) {
    const std::vector<std::string> list = words(name, {});
    if (list.empty()) return fallback;
    std::vector<int64_t> numbers;
    for (const std::string& number : list) numbers.push_back(to_number(name, number));
    return numbers;
  }

  // Throws std::invalid_argument when an option was given that no call above asked for.
  void finish() const {
    if (!options_.empty()) throw std::invalid_argument(str_cat("unknown option ", options_.begin()->first));
  }

 private:
  static int64_t to_number(const std::string& name, const std::string& value) {
    size_t used = 0;
    int64_t number = 0;
    try {
      number = std::stoll(value, &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (used == 0 || used != value.size())
      throw std::invalid_argument(str_cat(name, " ", value, ": expected a whole number"));
    return number;
  }

  std::string checkpoint_;
  std::set<std::string> flags_;
  std::map<std::string, std::string> options_;  // options that were given and that no call has asked for
};

}  // namespace longcat::bench
