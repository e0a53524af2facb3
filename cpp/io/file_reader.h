// Reads a file through read calls and not through its mapping. Otherwise the process's memory would count the mapped
// pages as well as the copy.
#pragma once

#include <cstdint>
#include <filesystem>

namespace longcat {

class FileReader {
 public:
  // Throws Error.
  explicit FileReader(const std::filesystem::path& path);
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  ~FileReader();

  // Reads all of [offset, offset + bytes). Throws Error when the disk fails or the file has become shorter.
  void read(void* to, int64_t offset, int64_t bytes) const;

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace longcat
