#include "engine/block_manager.h"

#include <algorithm>

#include "base/error.h"
#include "ops/batch.h"

namespace longcat {

namespace {

// Blocks with equal hashes are candidates only: find() compares their ids.
uint64_t hash_of(uint64_t parent, std::span<const int32_t> token_ids) {
  uint64_t hash = parent * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
  for (const int32_t id : token_ids) {
    hash = (hash ^ static_cast<uint32_t>(id)) * 0xFF51AFD7ED558CCDu;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace

BlockManager::BlockManager(int64_t num_blocks, bool enable_prefix_caching)
    : enabled_(enable_prefix_caching), blocks_(static_cast<size_t>(num_blocks)) {
  for (int64_t block = num_blocks - 1; block >= 1; --block) unused_.push_back(static_cast<int32_t>(block));
}

int32_t BlockManager::take() {
  LC_CHECK(num_free() > 0);
  int32_t block;
  if (!unused_.empty()) {
    block = unused_.back();
    unused_.pop_back();
  } else {
    block = reusable_.front();
    reusable_.pop_front();
    uncache_block(block);
  }
  at(block).references = 1;
  return block;
}

void BlockManager::share(int32_t block) {
  Block& b = at(block);
  if (b.references++ == 0) {
    LC_CHECK(b.uid != 0, "block ", block, " is free");
    reusable_.erase(b.place);
  }
}

void BlockManager::release(int32_t block) {
  Block& b = at(block);
  LC_CHECK(block > 0 && b.references > 0, "block ", block);
  if (--b.references > 0) return;
  if (b.uid != 0) {
    b.place = reusable_.insert(reusable_.end(), block);
  } else {
    unused_.push_back(block);
  }
}

void BlockManager::release(std::span<const int32_t> blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) release(*block);
}

bool BlockManager::may_write(int32_t block) const {
  const Block& b = blocks_[static_cast<size_t>(block)];
  return b.references == 1 && b.uid == 0;
}

bool BlockManager::is_unused(int32_t block) const {
  const Block& b = blocks_[static_cast<size_t>(block)];
  return b.references == 0 && b.uid == 0;
}

int32_t BlockManager::find(uint64_t hash, uint64_t parent, std::span<const int32_t> token_ids) const {
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const Block& b = blocks_[static_cast<size_t>(it->second)];
    if (b.parent == parent && std::ranges::equal(b.token_ids, token_ids)) return it->second;
  }
  return -1;
}

BlockManager::Match BlockManager::match(std::span<const int32_t> token_ids) {
  Match match;
  for (; enabled_ && token_ids.size() >= kBlockSize; token_ids = token_ids.subspan(kBlockSize)) {
    const std::span<const int32_t> ids = token_ids.first(kBlockSize);
    const uint64_t parent = match.uids.empty() ? 0 : match.uids.back();
    const int32_t block = find(hash_of(parent, ids), parent, ids);
    if (block < 0) break;
    share(block);
    match.blocks.push_back(block);
    match.uids.push_back(at(block).uid);
  }
  return match;
}

uint64_t BlockManager::cache_block(int32_t block, uint64_t parent, std::span<const int32_t> token_ids) {
  if (!enabled_) return 0;
  LC_CHECK(token_ids.size() == kBlockSize && at(block).references > 0 && at(block).uid == 0, "block ", block);
  const uint64_t hash = hash_of(parent, token_ids);
  if (const int32_t known = find(hash, parent, token_ids); known >= 0) return at(known).uid;
  Block& b = at(block);
  b.uid = next_uid_++;
  b.parent = parent;
  b.hash = hash;
  b.token_ids.assign(token_ids.begin(), token_ids.end());
  by_hash_.emplace(hash, block);
  return b.uid;
}

void BlockManager::uncache_block(int32_t block) {
  Block& b = at(block);
  const auto [begin, end] = by_hash_.equal_range(b.hash);
  by_hash_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == block; }));
  b.uid = 0;
  b.token_ids.clear();
}

void BlockManager::reset() {
  for (const auto& [hash, block] : by_hash_) {
    at(block).uid = 0;
    at(block).token_ids.clear();
  }
  by_hash_.clear();
  unused_.insert(unused_.end(), reusable_.begin(), reusable_.end());
  reusable_.clear();
}

}  // namespace longcat
