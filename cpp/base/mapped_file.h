// A file mapped read-only. Its pages are those of the operating system's page cache, which all processes share.
//
// When a file is cut or its disk fails, reading a lost page raises SIGBUS, which would end the process. A signal
// handler maps a page of zeros instead and marks the mapping; check() then throws. A result computed from mapped bytes
// is valid only once check() has passed.
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
  // Throws Error when `path` is not a readable, non-empty regular file. `where` opens the message: the area and the
  // printable file name ("[safetensors] model.safetensors").
  MappedFile(const std::filesystem::path& path, std::string_view where);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::filesystem::path& path() const { return path_; }

  // Throws Error when a page could not be read at any time since the file was mapped.
  void check() const;

  // Drops the pages that lie wholly within `bytes` from this process; they stay in the page cache.
  static void forget(std::span<const std::byte> bytes) noexcept;

  struct Mapping;  // what this file's functions and the signal handler know of a mapping

 private:
  std::filesystem::path path_;
  std::string where_;
  Mapping* mapping_ = nullptr;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The number of `bytes` of a mapped file that are in memory, in whole pages, whichever process read them.
int64_t cached_bytes(const void* data, int64_t bytes);

// Hints on how `bytes` of a mapped file will be used. When they fail, only speed suffers.
void expect_random_reads(const void* data, int64_t bytes);  // a page fault then reads one page, not its neighbours
void read_ahead(const void* data, int64_t bytes);           // starts reading pages that are not in memory

}  // namespace longcat
