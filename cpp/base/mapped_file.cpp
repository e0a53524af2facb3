#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"

namespace longcat {
namespace {

std::string reason_of(int error_number) { return std::system_category().message(error_number); }

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path, std::string_view where) : path_(path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) throw Error(str_cat(where, ": cannot be opened: ", reason_of(errno)));
  struct stat status{};
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file);
    throw Error(str_cat(where, ": not a regular file"));
  }
  if (status.st_size == 0) {
    ::close(file);
    throw Error(str_cat(where, ": the file is empty (0 bytes found): download it again"));
  }
  size_ = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  const int map_errno = errno;
  ::close(file);
  if (data == MAP_FAILED) throw Error(str_cat(where, ": cannot be mapped: ", reason_of(map_errno)));
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::forget(std::span<const std::byte> bytes) noexcept {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

int64_t page_bytes() {
  static const int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

// From the beginning of the first page.
std::span<std::byte> whole_pages(const void* data, int64_t bytes) {
  const auto into_page = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(page_bytes());
  auto* begin = static_cast<std::byte*>(const_cast<void*>(data)) - into_page;
  return {begin, static_cast<size_t>(bytes) + into_page};
}

void advise(const void* data, int64_t bytes, int advice) {
  const std::span<std::byte> pages = whole_pages(data, bytes);
  ::madvise(pages.data(), pages.size(), advice);
}

}  // namespace

int64_t cached_bytes(const void* data, int64_t bytes) {
  const std::span<std::byte> pages = whole_pages(data, bytes);
  std::vector<unsigned char> states(pages.size() / static_cast<size_t>(page_bytes()) + 1);
  if (::mincore(pages.data(), pages.size(), states.data()) != 0)
    throw Error(str_cat("[memory] mincore: ", reason_of(errno)));
  return page_bytes() * std::count_if(states.begin(), states.end(), [](unsigned char state) { return state & 1; });
}

void expect_random_reads(const void* data, int64_t bytes) { advise(data, bytes, MADV_RANDOM); }
void read_ahead(const void* data, int64_t bytes) { advise(data, bytes, MADV_WILLNEED); }

}  // namespace longcat
