// A file mapped read-only: the pages it holds are the operating system's cache, shared by all processes.
//
// A read of a page that the file no longer has, since it was cut or its disk failed, raises SIGBUS, which would end the
// process. A handler puts zeros in place of the page and marks the mapping; check() then throws. So a result that came
// from mapped bytes counts once check() has passed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace longcat {

class MappedFile {
 public:
  // Throws Error when `path` is not a readable, non-empty regular file. `where` opens the message: who asked and the
  // file's name, fit to print ("[safetensors] model.safetensors").
  MappedFile(const std::filesystem::path& path, std::string_view where);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::filesystem::path& path() const { return path_; }

  // Throws Error when a page that was read since the file was mapped could not be had.
  void check() const;

  // This process does not need the pages that lie whole within `bytes` any more; they stay in the system's cache.
  static void forget(std::span<const std::byte> bytes) noexcept;

 private:
  struct Mapping;  // what the handler knows of a mapping

  std::filesystem::path path_;
  std::string where_;
  Mapping* mapping_ = nullptr;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Of `bytes` of a mapped file, those that are in memory, whoever brought them there.
int64_t cached_bytes(const void* data, int64_t bytes);

// What is known of how `bytes` of mapped files will be used; hints, whose failure changes nothing but the time.
void expect_random_reads(const void* data, int64_t bytes);  // a fault reads its page alone, not what lies around it
void read_ahead(const void* data, int64_t bytes);           // starts to read the pages, and does not wait

}  // namespace longcat
