// The blocks of the KV cache: references to each block, and the prefix cache.
//
// A block is free, or sequences hold references to it. A block in the prefix cache is called cached. A sequence may
// write to a block that is not cached while it holds the only reference. A cached block is full of prompt tokens. It is
// found by its own token ids and those of the blocks before it. A cached block without references stays until its
// memory is needed; the least recently used one goes first.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace longcat {

class BlockManager {
 public:
  // num_blocks: all blocks of the cache, including the null block 0, which no sequence gets.
  BlockManager(int64_t num_blocks, bool enable_prefix_caching);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()) - 1; }
  int64_t num_free() const { return static_cast<int64_t>(unused_.size() + reusable_.size()); }
  int64_t num_cached() const { return static_cast<int64_t>(by_hash_.size()); }
  int32_t references(int32_t block) const { return blocks_[static_cast<size_t>(block)].references; }

  // Returns a free block, with one reference. num_free() must not be 0.
  int32_t take();
  void share(int32_t block);
  void release(int32_t block);
  // Releases the last block first, so that the end of a prefix is evicted before its beginning.
  void release(std::span<const int32_t> blocks);
  bool may_write(int32_t block) const;
  bool is_unused(int32_t block) const;  // free, and not in the prefix cache

  // A uid names a cached block and is never used twice, so the uid of a block names its whole prefix. 0: no block.
  struct Match {
    std::vector<int32_t> blocks;  // the caller gets one reference to each
    std::vector<uint64_t> uids;
  };
  // Returns the longest prefix of `token_ids` in the prefix cache, in whole blocks.
  Match match(std::span<const int32_t> token_ids);

  // Adds `block` to the prefix cache. The block holds `token_ids` [64], and the block before it has the uid `parent`.
  // Returns the uid of `block`, or of a cached block with the same tokens and parent.
  uint64_t cache_block(int32_t block, uint64_t parent, std::span<const int32_t> token_ids);

  // Empties the prefix cache. Sequences keep their blocks.
  void reset();

 private:
  struct Block {
    int32_t references = 0;
    uint64_t uid = 0;  // 0: not cached
    uint64_t parent = 0, hash = 0;
    std::vector<int32_t> token_ids;
    std::list<int32_t>::iterator place;  // in reusable_
  };
  Block& at(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  int32_t find(uint64_t hash, uint64_t parent, std::span<const int32_t> token_ids) const;  // -1: none
  void uncache_block(int32_t block);

  bool enabled_;
  uint64_t next_uid_ = 1;
  std::vector<Block> blocks_;
  std::vector<int32_t> unused_;                         // free, and not in the prefix cache
  std::list<int32_t> reusable_;                         // free and cached, least recently used first
  std::unordered_multimap<uint64_t, int32_t> by_hash_;  // hash of (parent, token ids) -> block
};

}  // namespace longcat
