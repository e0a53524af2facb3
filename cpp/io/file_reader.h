// Reads of a file that do not go through its mapping, so that its pages are not counted twice.
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

  // All of [offset, offset + bytes). Throws Error: the disk failed, or the file is shorter than it was.
  void read(void* to, int64_t offset, int64_t bytes) const;

 private:
  std::filesystem::path path_;
  int fd_;
};

}  // namespace longcat
