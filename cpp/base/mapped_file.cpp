#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"

namespace longcat {
namespace {

std::string reason_of(int error_number) { return std::system_category().message(error_number); }

}  // namespace

// An entry of a list that a signal handler walks without a lock. Entries are added and reused, never removed.
struct MappedFile::Mapping {
  std::atomic<uintptr_t> begin = 0, end = 0;  // end 0: unused
  std::atomic<bool> shows_cached = false;     // mincore tells which pages are in memory
  std::atomic<int64_t> lost_byte = -1;        // offset in the file of the first page that could not be read; -1: none
  Mapping* next = nullptr;

  static std::atomic<Mapping*> list;
  static struct sigaction others;  // the SIGBUS action that was set before ours

  static Mapping* add(uintptr_t begin, uintptr_t end, bool shows_cached);
  static Mapping* of(const void* data);  // null: not in a mapped file
  static void on_bus_error(int signal, siginfo_t* info, void* context);
};

std::atomic<MappedFile::Mapping*> MappedFile::Mapping::list = nullptr;
struct sigaction MappedFile::Mapping::others{};

// The handler of SIGBUS, which a read raises when the file lacks the page or the disk fails. It maps zeros in place of
// the page and stores its offset for check(). It uses only what a signal handler may use: lock-free atomics and system
// calls.
void MappedFile::Mapping::on_bus_error(int /*signal*/, siginfo_t* info, void* /*context*/) {
  static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);
  const int saved_errno = errno;
  const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Mapping* m = list.load(); m && info->si_code > 0; m = m->next) {
    const uintptr_t begin = m->begin.load(), end = m->end.load();
    if (address < begin || address >= end) continue;
    const uintptr_t page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t page = address / page_bytes * page_bytes;
    void* zeros =
        ::mmap(reinterpret_cast<void*>(page), page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros == MAP_FAILED) break;
    int64_t none = -1;
    m->lost_byte.compare_exchange_strong(none, static_cast<int64_t>(page - begin));
    errno = saved_errno;
    return;
  }
  // Not one of our mappings: restore the earlier action. The failed instruction then runs again and raises SIGBUS
  // again.
  ::sigaction(SIGBUS, &others, nullptr);
  if (info->si_code <= 0) ::raise(SIGBUS);
  errno = saved_errno;
}

MappedFile::Mapping* MappedFile::Mapping::add(uintptr_t begin, uintptr_t end, bool shows_cached) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  struct sigaction current{};
  ::sigaction(SIGBUS, nullptr, &current);
  if (!(current.sa_flags & SA_SIGINFO) || current.sa_sigaction != &on_bus_error) {
    struct sigaction ours{};
    ours.sa_sigaction = &on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&ours.sa_mask);
    others = current;
    ::sigaction(SIGBUS, &ours, nullptr);
  }
  Mapping* entry = list.load();
  while (entry && entry->end != 0) entry = entry->next;
  if (!entry) {
    entry = new Mapping;  // never freed
    entry->next = list.load();
    list = entry;
  }
  entry->lost_byte = -1;
  entry->shows_cached = shows_cached;
  entry->begin = begin;
  entry->end = end;
  return entry;
}

MappedFile::Mapping* MappedFile::Mapping::of(const void* data) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(data);
  Mapping* m = list.load();
  while (m && !(m->begin.load() <= address && address < m->end.load())) m = m->next;
  return m;
}

MappedFile::MappedFile(const std::filesystem::path& path, std::string_view where) : path_(path), where_(where) {
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
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  try {
    // Of a file that is neither ours nor ours to write, the kernel says that all pages are in memory.
    const bool shows_cached =
        status.st_uid == ::geteuid() || ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
    mapping_ = Mapping::add(begin, begin + size_, shows_cached);
  } catch (...) {
    ::munmap(data, size_);
    throw;
  }
}

void MappedFile::check() const {
  if (!mapping_) return;
  if (const int64_t lost = mapping_->lost_byte; lost >= 0)
    throw Error(
        str_cat(where_, ": byte ", lost, " could not be read; expected ", size_,
                " bytes. The file was cut or its disk failed while it was in use: restore it and load it again"));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      where_(std::move(other.where_)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(where_, other.where_);
  std::swap(mapping_, other.mapping_);
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
  if (mapping_) mapping_->end = 0;  // before munmap, because another mapping may get the same addresses
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

namespace {

int64_t page_bytes() {
  static const int64_t bytes = ::sysconf(_SC_PAGESIZE);
  return bytes;
}

// `bytes` from `data`, extended back to the beginning of the first page.
std::span<std::byte> whole_pages(const void* data, int64_t bytes) {
  const auto into_page = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(page_bytes());
  auto* begin = static_cast<std::byte*>(const_cast<void*>(data)) - into_page;
  return {begin, static_cast<size_t>(bytes) + into_page};
}

void advise(const void* data, int64_t bytes, int advice) {
  const std::span<std::byte> pages = whole_pages(data, bytes);
  ::madvise(pages.data(), pages.size(), advice);
}

// As cached_bytes(); -1: the system does not tell, and errno says why.
int64_t find_cached_bytes(const void* data, int64_t bytes) {
  const std::span<std::byte> pages = whole_pages(data, bytes);
  const auto page = static_cast<size_t>(page_bytes());
  thread_local std::vector<unsigned char> states;
  states.assign((pages.size() + page - 1) / page, 0);
  if (::mincore(pages.data(), pages.size(), states.data()) != 0) return -1;
  return page_bytes() * std::count_if(states.begin(), states.end(), [](unsigned char state) { return state & 1; });
}

}  // namespace

int64_t cached_bytes(const void* data, int64_t bytes) {
  const int64_t found = find_cached_bytes(data, bytes);
  if (found < 0) throw Error(str_cat("[memory] mincore: ", reason_of(errno)));
  return found;
}

void expect_random_reads(const void* data, int64_t bytes) { advise(data, bytes, MADV_RANDOM); }

void read_ahead(const void* data, int64_t bytes) {
  // Advice about pages that are there is slow: for the experts of a token it took a quarter of the step. So ask first.
  const MappedFile::Mapping* mapping = MappedFile::Mapping::of(data);
  if (mapping && mapping->shows_cached && find_cached_bytes(data, bytes) >= bytes) return;
  advise(data, bytes, MADV_WILLNEED);
}

}  // namespace longcat
