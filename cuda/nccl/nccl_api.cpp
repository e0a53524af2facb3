#include "cuda/nccl/nccl_api.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/error.h"

namespace longcat {

namespace {

// The place of pip's nvidia-nccl-cu12 and -cu13: site-packages/nvidia/nccl/lib, next to site-packages/longcat.
std::filesystem::path beside_this_package() {
  Dl_info info;
  if (!::dladdr(reinterpret_cast<void*>(&load_nccl), &info) || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path().parent_path() / "nvidia/nccl/lib/libnccl.so.2";
}

NcclApi load() {
  std::vector<std::string> candidates;
  if (const char* named = std::getenv("LONGCAT_NCCL")) {
    candidates = {named};
  } else {
    candidates = {beside_this_package().string(), "libnccl.so.2"};
  }
  std::string tried;
  void* library = nullptr;
  for (const std::string& candidate : candidates) {
    if (candidate.empty()) continue;
    library = ::dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library) break;
    tried += str_cat(tried.empty() ? "" : "; ", ::dlerror());
  }
  if (!library)
    throw Error(str_cat("[nccl] ranks on GPUs need libnccl.so.2, which cannot be loaded (", tried,
                        "): pip install nvidia-nccl-cu12, or set LONGCAT_NCCL to its path"));
  NcclApi api{};
  const auto find = [&](auto& function, const char* symbol) {
    void* found = ::dlsym(library, symbol);
    if (!found) throw Error(str_cat("[nccl] the library has no ", symbol, ": expected NCCL 2.19 or later"));
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(found);
  };
  find(api.get_version, "ncclGetVersion");
  find(api.get_unique_id, "ncclGetUniqueId");
  find(api.comm_init_rank, "ncclCommInitRank");
  find(api.comm_destroy, "ncclCommDestroy");
  find(api.comm_abort, "ncclCommAbort");
  find(api.all_gather, "ncclAllGather");
  find(api.all_reduce, "ncclAllReduce");
  find(api.broadcast, "ncclBroadcast");
  find(api.send, "ncclSend");
  find(api.recv, "ncclRecv");
  find(api.group_start, "ncclGroupStart");
  find(api.group_end, "ncclGroupEnd");
  find(api.get_error_string, "ncclGetErrorString");
  return api;
}

}  // namespace

const NcclApi& load_nccl() {
  static const NcclApi api = load();
  return api;
}

}  // namespace longcat
