// Who owns which block of the KV cache, and which blocks hold a prompt that another request may begin with.
//
// A block is free, or has references; written only by a sequence that holds its one reference and while it is not
// published. A published block is full of prompt tokens and found by its ids and those before it; without references
// it stays findable until its memory is needed, least recently used first.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

namespace longcat {

class BlockManager {
 public:
  // num_blocks: of the cache, the null block 0 included, which is never given out.
  BlockManager(int64_t num_blocks, bool enable_prefix_caching);

  int64_t num_blocks() const { return static_cast<int64_t>(blocks_.size()) - 1; }
  int64_t num_free() const { return static_cast<int64_t>(unused_.size() + reusable_.size()); }
  int64_t num_published() const { return static_cast<int64_t>(by_hash_.size()); }
  int32_t references(int32_t block) const { return blocks_[static_cast<size_t>(block)].references; }

  // A block with one reference. num_free() must not be 0.
  int32_t take();
  void share(int32_t block);
  void release(int32_t block);
  // Last first, so that of a chain the end is forgotten before what leads to it.
  void release(std::span<const int32_t> blocks);
  bool may_write(int32_t block) const;
  bool is_unused(int32_t block) const;  // free, and no prefix is kept in it

  // Names of published blocks: a uid is never used twice, so a chain of uids is a prefix. 0: before the first block.
  struct Match {
    std::vector<int32_t> blocks;  // one reference each
    std::vector<uint64_t> uids;
  };
  // The longest published prefix of `token_ids`, whole blocks.
  Match match(std::span<const int32_t> token_ids);

  // Makes `block` findable as the successor of `parent`, filled with `token_ids` [64]. Returns its uid, or that of the
  // block that is known by these tokens already.
  uint64_t publish(int32_t block, uint64_t parent, std::span<const int32_t> token_ids);

  // Forgets all published blocks; their owners keep them.
  void reset();

 private:
  struct Block {
    int32_t references = 0;
    uint64_t uid = 0;  // 0: not published
    uint64_t parent = 0, hash = 0;
    std::vector<int32_t> token_ids;
    std::list<int32_t>::iterator place;  // in reusable_
  };
  Block& at(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  int32_t find(uint64_t hash, uint64_t parent, std::span<const int32_t> token_ids) const;  // -1: none
  void unpublish(int32_t block);

  bool enabled_;
  uint64_t next_uid_ = 1;
  std::vector<Block> blocks_;
  std::vector<int32_t> unused_;                         // free, content of no interest
  std::list<int32_t> reusable_;                         // free and published, least recently used first
  std::unordered_multimap<uint64_t, int32_t> by_hash_;  // of (parent, token ids)
};

}  // namespace longcat
