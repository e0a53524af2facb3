// Checkpoints as memory-mapped safetensors: one file, or shards listed in model.safetensors.index.json.
//
// Files are not trusted: a header is checked completely before an offset in it is used. A damaged checkpoint is refused
// with one line: the file, what was found, what was expected, and the remedy.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/mapped_file.h"

namespace longcat {

constexpr int64_t kMaxHeaderBytes = 16 << 20;
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr int64_t kMaxTensors = 200'000;  // limits of one file, of an index, and of a checkpoint
constexpr int64_t kMaxShards = 10'000;
constexpr int kMaxHeaderDepth = 8;
// Of the packed formats (docs/formats.md): a file that has them says so in its metadata.
constexpr const char* kFormatVersionKey = "longcat_format_version";
constexpr const char* kFormatVersion = "1";
constexpr int kMaxTensorDims = 8;

// One entry of a safetensors header; begin and end are offsets from the end of the header [bytes].
struct TensorEntry {
  DType dtype{};
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;
};

// Checks length, depth, duplicate keys, dtype, shape product, and size = shape x dtype. The tensors must also tile the
// `data_bytes` after the header without overlap, gap or rest. A format version other than kFormatVersion is refused.
// `where` names the file in messages. Throws Error.
std::map<std::string, TensorEntry> parse_safetensors_header(std::string_view header_json, uint64_t data_bytes,
                                                            const std::string& where);

// model.safetensors.index.json: the shard of each tensor.
struct ShardIndex {
  std::vector<std::string> shards;            // plain file names, in order of appearance
  std::map<std::string, int32_t> weight_map;  // tensor name -> index into `shards`
};

// A shard name must be a plain *.safetensors file name, so an index cannot point out of its folder. Throws Error.
ShardIndex parse_safetensors_index(std::string_view text, const std::string& where);

// A tensor of a checkpoint, in the read-only mapped file. Its data may not be aligned to its dtype.
struct StoredTensor {
  DType dtype{};
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  uint64_t num_bytes = 0;
  int32_t shard = 0;  // index into Checkpoint::shards()
};

// The other name of an N-gram table or projection: LongCat-Flash-Lite and -Sparse spell them differently. Returns an
// empty string for any other tensor.
std::string other_spelling(const std::string& name);

class Checkpoint {
 public:
  // Maps every shard of `folder`. One with the MTP layer alone may be missing. Throws Error.
  explicit Checkpoint(const std::filesystem::path& folder);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  // Returns nullptr when the tensor is absent under both of its names (other_spelling).
  const StoredTensor* find(const std::string& name) const;
  const std::vector<MappedFile>& shards() const { return shards_; }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  void add_shard(const std::string& file_name);
  void add_indexed_shards(const std::filesystem::path& index_path);

  std::filesystem::path folder_;
  std::vector<MappedFile> shards_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace longcat
