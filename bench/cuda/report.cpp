#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/error.h"

namespace longcat {

namespace {

// Formats a number with three digits, and with more only left of the point.
std::string number(double value) {
  char text[32];
  const double size = std::fabs(value);
  std::snprintf(text, sizeof(text), size >= 100 ? "%.0f" : size >= 10 ? "%.1f" : "%.2f", value);
  return text;
}

}  // namespace

Report::Report(std::string suite, double budget_seconds)
    : suite_(std::move(suite)),
      end_(std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                  std::chrono::duration<double>(std::min(budget_seconds, 1e6)))) {}

void Report::header(const std::string& title) const {
  std::printf(
      "\n| %s | found | unit | expected | found/expected | of the bound |\n| --- | --- | --- | --- | --- | --- |\n",
      title.c_str());
  std::fflush(stdout);
}

void Report::row(const std::string& what, double found, const char* unit, double share, const std::string& note) {
  const Expectation* expected = find_expectation(suite_, what);
  met_.insert(what);
  if (expected && std::string(expected->unit) != unit)
    throw Error(str_cat("[internal] ", suite_, ": \"", what, "\" is in ", unit, ", expected in ", expected->unit));
  std::printf("| %s%s | %s | %s | %s | %s | %s |\n", what.c_str(), note.empty() ? "" : (", " + note).c_str(),
              number(found).c_str(), unit, expected ? number(expected->value).c_str() : "-",
              expected ? number(found / expected->value).c_str() : "-",
              share >= 0 ? (number(100 * share) + " %").c_str() : "-");
  std::fflush(stdout);
}

void Report::fact(const std::string& what, bool holds) {
  holds_ = holds_ && holds;
  std::printf("| %s | %s | | yes | | |\n", what.c_str(), holds ? "yes" : "NO");
  std::fflush(stdout);
}

bool Report::has_time(const std::string& what, double seconds, const std::string& note) {
  if (seconds <= seconds_left()) return true;
  leave_out(what,
            str_cat("takes about ", number(seconds), " s, ", number(std::max(seconds_left(), 0.0)),
                    " s of the budget are left"),
            note);
  return false;
}

void Report::leave_out(const std::string& what, const std::string& why, const std::string& note) {
  left_out_.emplace_back(what, note.empty() ? ": " + why : ", " + note + ": " + why);
}

double Report::seconds_left() const {
  return std::chrono::duration<double>(end_ - std::chrono::steady_clock::now()).count();
}

void Report::finish() const {
  if (!left_out_.empty()) std::printf("\nLeft out:\n");
  for (const auto& [what, why] : left_out_) std::printf("- %s%s\n", what.c_str(), why.c_str());
  std::fflush(stdout);
  for (const Expectation& expected : expectations_of(suite_)) {
    const std::string name = expected.what;
    const bool is_left_out = std::ranges::any_of(
        left_out_, [&](const auto& one) { return name == one.first || name.starts_with(one.first + ","); });
    if (!is_left_out && !met_.contains(name))
      throw Error(str_cat("[internal] ", suite_, " has no row \"", name, "\", which expectations.cpp names"));
  }
}

}  // namespace longcat
