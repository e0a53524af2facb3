// JSON read as events, the common base of our parsers: strict grammar, a depth limit, one-line errors.
//
// A parser gets events and no document, so a hostile file costs only the memory that the parser chooses to keep.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "io/printable.h"

namespace longcat {

class JsonEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  // `where` opens every message: it names the area and the file.
  JsonEvents(std::string where, int max_depth) : where_(std::move(where)), max_depth_(max_depth) {}

  // Throws Error.
  void parse(std::string_view text) {
    // The lexer takes a NUL byte for the end of the input and would ignore the rest.
    if (const size_t nul = text.find('\0'); nul != text.npos) fail("not valid JSON: NUL byte at byte ", nul);
    nlohmann::json::sax_parse(text.begin(), text.end(), static_cast<nlohmann::json_sax<nlohmann::json>*>(this));
  }

 protected:
  // A subclass handles every event. `depth()` counts the open brackets.
  virtual void on_open(char bracket) = 0;  // depth() does not count the new bracket yet
  virtual void on_close() = 0;             // depth() no longer counts the closed bracket
  virtual void on_key(std::string& key) = 0;
  virtual void on_string(std::string& text) = 0;
  virtual void on_unsigned(uint64_t value) = 0;
  virtual void on_other(const char* kind) = 0;  // "null", "a boolean", "a negative number", "a fraction"

  int depth() const { return depth_; }

  template <class... Args>
  [[noreturn]] void fail(const Args&... args) const {
    throw Error(str_cat(where_, ": ", args...));
  }

 private:
  bool null() final { return other("null"); }
  bool boolean(bool) final { return other("a boolean"); }
  bool number_integer(int64_t) final { return other("a negative number"); }
  bool number_unsigned(uint64_t value) final {
    on_unsigned(value);
    return true;
  }
  // Integers beyond 64 bits arrive here, too.
  bool number_float(double, const std::string&) final { return other("a fraction or a number beyond 64 bits"); }
  bool string(std::string& text) final {
    on_string(text);
    return true;
  }
  bool binary(binary_t&) final { return other("binary data"); }
  bool start_object(std::size_t) final { return open('{'); }
  bool end_object() final { return close(); }
  bool start_array(std::size_t) final { return open('['); }
  bool end_array() final { return close(); }
  bool key(std::string& key) final {
    on_key(key);
    return true;
  }

  // The text of nlohmann's exception: "[json...] parse error at line 1, column 2: syntax error ... - invalid literal;
  // last read: ...".
  bool parse_error(std::size_t, const std::string& last_token, const nlohmann::json::exception& error) final {
    std::string_view what = error.what();
    if (const size_t begin = what.find("] "); begin != what.npos) what.remove_prefix(begin + 2);
    fail("not valid JSON: ", printable(what.substr(0, what.find("; ")), 160),
         " (last read: ", printable(last_token, 40), ")");
  }

  bool open(char bracket) {
    if (depth_ == max_depth_) fail("JSON nested deeper than ", max_depth_, " levels");
    on_open(bracket);
    ++depth_;
    return true;
  }
  bool close() {
    --depth_;
    on_close();
    return true;
  }
  bool other(const char* kind) {
    on_other(kind);
    return true;
  }

  const std::string where_;
  const int max_depth_;
  int depth_ = 0;
};

}  // namespace longcat
