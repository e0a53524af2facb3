// Checked access to the fields of a configuration object. Problems are collected, so that one error lists all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/printable.h"

namespace longcat {

struct ConfigProblems {
  std::vector<std::string> missing;  // names of required fields
  std::vector<std::string> wrong;    // one clause per wrong field, complete with what was expected

  bool none() const { return missing.empty() && wrong.empty(); }

  template <class... Args>
  void add(const Args&... args) {
    std::string clause = str_cat(args...);
    if (std::find(wrong.begin(), wrong.end(), clause) == wrong.end()) wrong.push_back(std::move(clause));
  }

  // Returns the problems as a text: "missing a, b; c is 0, expected ...".
  std::string text() const {
    std::string out;
    for (const std::string& name : missing) out += (out.empty() ? "missing " : ", ") + name;
    for (const std::string& clause : wrong) out += (out.empty() ? "" : "; ") + clause;
    return out;
  }
};

class ConfigFields {
 public:
  // The names of one field: the preferred name, then its aliases.
  using Names = std::initializer_list<const char*>;

  // `prefix` precedes names in messages: "" or "rope_scaling.".
  ConfigFields(const nlohmann::json& object, std::string prefix, ConfigProblems& problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  ConfigProblems& problems() { return problems_; }

  // Returns nullptr when the field is absent or null, as Hugging Face does. Aliases with different values are a
  // problem.
  const nlohmann::json* find(Names names) {
    const nlohmann::json* found = nullptr;
    for (const char* name : names) {
      const auto field = object_.find(name);
      if (field == object_.end() || field->is_null()) continue;
      if (found && *found != *field)
        problems_.add(prefix_, *names.begin(), " is ", show(*found), " but its alias ", name, " is ", show(*field));
      if (!found) found = &*field;
    }
    return found;
  }
  bool has(const char* name) { return find({name}) != nullptr; }

  // Reads an integer in [low, high]. The field is required unless there is a fallback. Returns `low` after a problem.
  int64_t integer(Names names, int64_t low, int64_t high, std::optional<int64_t> fallback = {}) {
    const nlohmann::json* field = find(names);
    if (!field) return fallback ? *fallback : missing(names, low);
    const bool in_range =
        field->is_number_unsigned()
            ? field->get<uint64_t>() <= static_cast<uint64_t>(high) && field->get<int64_t>() >= low
            : field->is_number_integer() && field->get<int64_t>() >= low && field->get<int64_t>() <= high;
    if (in_range) return field->get<int64_t>();
    problems_.add(prefix_, *names.begin(), " is ", show(*field), ", expected an integer in ", low, "..", high);
    return low;
  }

  // Reads a finite number in (low, high], or in [low, high] with `closed`. The field is required unless there is a
  // fallback.
  double number(Names names, double low, double high, std::optional<double> fallback = {}, bool closed = false) {
    const nlohmann::json* field = find(names);
    if (!field) return fallback ? *fallback : missing(names, high);
    if (field->is_number()) {
      const double value = field->get<double>();
      if (std::isfinite(value) && (closed ? value >= low : value > low) && value <= high) return value;
    }
    problems_.add(prefix_, *names.begin(), " is ", show(*field), ", expected a number in ", closed ? '[' : '(', low,
                  ", ", high, "]");
    return high;
  }
  std::optional<double> optional_number(const char* name, double low, double high) {
    if (!has(name)) return std::nullopt;
    return number({name}, low, high, std::nullopt, true);
  }

  bool boolean(const char* name, bool fallback) {
    const nlohmann::json* field = find({name});
    if (!field) return fallback;
    if (field->is_boolean()) return field->get<bool>();
    problems_.add(prefix_, name, " is ", show(*field), ", expected true or false");
    return fallback;
  }

  // Returns an empty list when the field is absent.
  std::string text(Names names) {
    const nlohmann::json* field = find(names);
    if (!field) return "";
    if (field->is_string()) return field->get<std::string>();
    problems_.add(prefix_, *names.begin(), " is ", show(*field), ", expected a string");
    return "";
  }

  // Checks a field that may have one value only, because the runtime implements no other.
  void only(const char* name, const nlohmann::json& value, const char* why) {
    const nlohmann::json* field = find({name});
    if (field && *field != value)
      problems_.add(prefix_, name, " is ", show(*field), ", expected ", value.dump(), ": ", why);
  }

  static std::string show(const nlohmann::json& value) { return printable(value.dump(), 60); }

 private:
  template <class T>
  T missing(Names names, T stand_in) {
    problems_.missing.push_back(prefix_ + *names.begin());
    return stand_in;
  }

  const nlohmann::json& object_;
  const std::string prefix_;
  ConfigProblems& problems_;
};

}  // namespace longcat
