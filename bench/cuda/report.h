// The table of a suite: what was found beside what was expected, each row printed at once, within a budget of time.
#pragma once

#include <chrono>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace longcat {

// What a row of a suite should find. All of them stand in expectations.cpp, with their sources.
struct Expectation {
  const char* suite;
  const char* what;  // as the row is named, without its note
  double value;
  const char* unit;
};

// Null: the table has no value for that row.
const Expectation* find_expectation(const std::string& suite, const std::string& what);
std::vector<Expectation> expectations_of(const std::string& suite);

class Report {
 public:
  static constexpr double kNoShare = -1;

  // budget_seconds: from now on, for the whole suite.
  Report(std::string suite, double budget_seconds);

  // A table begins.
  void header(const std::string& title) const;

  // found: in `unit`. share: of what the device allows, 1 at the bound. note: stands behind the name of the row.
  void row(const std::string& what, double found, const char* unit, double share = kNoShare,
           const std::string& note = "");
  // A fact that must hold; holds() is false from then on where one did not.
  void fact(const std::string& what, bool holds);

  // Whether work of about `seconds` still fits into the budget. If not, `what` is left out: the row of that name,
  // or all whose names begin with it and a comma.
  bool has_time(const std::string& what, double seconds, const std::string& note = "");
  void leave_out(const std::string& what, const std::string& why, const std::string& note = "");
  double seconds_left() const;

  // Prints what was left out. Throws Error where an expectation of the suite met no row: its name is wrong.
  void finish() const;

  bool holds() const { return holds_; }

 private:
  std::string suite_;
  std::chrono::steady_clock::time_point end_;
  std::set<std::string> met_;                                  // rows that were printed
  std::vector<std::pair<std::string, std::string>> left_out_;  // what; note and why
  bool holds_ = true;
};

}  // namespace longcat
