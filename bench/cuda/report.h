// Prints the table of a suite: the found figure beside the expected one, each row at once, within a budget of time.
#pragma once

#include <chrono>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace longcat {

// The expected figure of one row of a suite. All of them stand in expectations.cpp, with their sources.
struct Expectation {
  const char* suite;
  const char* what;  // the name of the row, without its note
  double value;
  const char* unit;
};

// Returns the expectation of a row; null: there is none.
const Expectation* find_expectation(const std::string& suite, const std::string& what);
std::vector<Expectation> expectations_of(const std::string& suite);

class Report {
 public:
  static constexpr double kNoShare = -1;

  // budget_seconds: time for the whole suite, from this call on.
  Report(std::string suite, double budget_seconds);

  // Begins a table.
  void header(const std::string& title) const;

  // Prints a row. found: in `unit`. share: part of what the device allows; 1 is the bound. note: printed behind the
  // name of the row.
  void row(const std::string& what, double found, const char* unit, double share = kNoShare,
           const std::string& note = "");
  // Prints a fact that must hold. When one does not, holds() is false from then on.
  void fact(const std::string& what, bool holds);

  // Returns whether work of about `seconds` still fits into the budget. If not, `what` counts as left out: the row of
  // that name, or all rows whose names begin with it and a comma.
  bool has_time(const std::string& what, double seconds, const std::string& note = "");
  void leave_out(const std::string& what, const std::string& why, const std::string& note = "");
  double seconds_left() const;

  // Prints what was left out. Throws Error when an expectation of the suite matched no row, because its name is wrong.
  void finish() const;

  bool holds() const { return holds_; }

 private:
  std::string suite_;
  std::chrono::steady_clock::time_point end_;
  std::set<std::string> met_;                                  // names of the rows that were printed
  std::vector<std::pair<std::string, std::string>> left_out_;  // row; note and reason
  bool holds_ = true;
};

}  // namespace longcat
