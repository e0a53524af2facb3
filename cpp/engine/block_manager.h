// The blocks of the KV cache: references to each block, and the prefix cache.
//
// A block is free or has references. Only a sequence that holds its one reference may write it, and only before it is
// cached, that is, added to the prefix cache. A cached block is full of prompt tokens; it is found by its own ids
// and those of the blocks before it. Without references it stays in the prefix cache until its memory is needed, the
// least recently used first.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace longcat {

class BlockManager {
 public:
  // num_blocks: all blocks of the cache, with the null block 0, which is never given out.
  BlockManager(int64_t num_blocks, bool enable_prefix_caching);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()) - 1; }
  int64_t num_free() const { return static_cast<int64_t>(unused_.size() + reusable_.size()); }
  int64_t num_cached() const { return static_cast<int64_t>(by_hash_.size()); }
  int32_t references(int32_t block) const { return blocks_[static_cast<size_t>(block)].references; }

  // A block with one reference. num_free() must not be 0.
  int32_t take();
  void share(int32_t block);
  void release(int32_t block);
  // Releases the last block first, so that the end of a prefix is evicted before its beginning.
  void release(std::span<const int32_t> blocks);
  bool may_write(int32_t block) const;
  bool is_unused(int32_t block) const;  // free, and not in the prefix cache

  // uids name cached blocks and are never used twice, so the uid of a block names its whole prefix. 0: no block.
  struct Match {
    std::vector<int32_t> blocks;  // one reference each
    std::vector<uint64_t> uids;
  };
  // The longest prefix of `token_ids` in the prefix cache, in whole blocks.
  Match match(std::span<const int32_t> token_ids);

  // Adds `block` to the prefix cache, which holds `token_ids` [64] behind the block with the uid `parent`. Returns its
  // uid, or the uid of a block with the same tokens that is cached already.
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
  std::unordered_multimap<uint64_t, int32_t> by_hash_;  // of (parent, token ids)
};

}  // namespace longcat
