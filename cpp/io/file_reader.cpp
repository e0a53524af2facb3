#include "io/file_reader.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/error.h"

namespace longcat {

FileReader::FileReader(const std::filesystem::path& path)
    : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
  if (fd_ < 0) throw Error(str_cat("[safetensors] ", path_.string(), ": cannot be opened: ", std::strerror(errno)));
}

FileReader::~FileReader() { ::close(fd_); }

void FileReader::read(void* to, int64_t offset, int64_t bytes) const {
  while (bytes > 0) {
    const ssize_t count = ::pread(fd_, to, static_cast<size_t>(bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      throw Error(str_cat("[safetensors] ", path_.string(), ": byte ", offset,
                          " cannot be read: ", std::strerror(errno), " (is the disk healthy?)"));
    if (count == 0)
      throw Error(str_cat("[safetensors] ", path_.string(), ": ends at byte ", offset, ", ", bytes,
                          " more are expected: it was cut while it was read"));
    to = static_cast<std::byte*>(to) + count;
    offset += count;
    bytes -= count;
  }
}

}  // namespace longcat
