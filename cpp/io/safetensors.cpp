#include "io/safetensors.h"

#include <algorithm>
#include <bitset>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "io/json_events.h"
#include "io/model_folder.h"
#include "io/printable.h"

namespace longcat {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr uint64_t kLengthBytes = 8;     // size of the length field before the header
constexpr uint64_t kMaxMetadata = 1000;  // number of keys, which are kept to find duplicates

constexpr DType kDTypes[] = {DType::bf16, DType::f16, DType::f32, DType::f8_e4m3,
                             DType::i8,   DType::u8,  DType::i32, DType::i64};

std::string area(const std::string& where) { return "[safetensors] " + printable(where, 1024); }

// The JSON of a safetensors header: {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets"}, ...}.
// Each entry is checked when it closes; check_layout() compares entries afterwards.
class HeaderEvents final : public JsonEvents {
 public:
  explicit HeaderEvents(std::string where) : JsonEvents(std::move(where), kMaxHeaderDepth) {}

  std::map<std::string, TensorEntry> tensors;

 private:
  enum Field { dtype, shape, data_offsets, kNumFields };
  static constexpr const char* kFieldNames[kNumFields] = {"dtype", "shape", "data_offsets"};

  bool in_metadata() const { return entry_ == nullptr; }
  std::string subject() const { return in_metadata() ? "__metadata__" : "tensor " + in_quotes(entry_->first); }

  void on_key(std::string& key) override {
    if (depth() == 1) {
      begin_entry(key);
    } else if (in_metadata()) {
      if (!metadata_keys_.insert(key).second) fail("__metadata__: duplicate key ", in_quotes(key));
      if (metadata_keys_.size() > kMaxMetadata) fail("__metadata__: more than ", kMaxMetadata, " keys");
      is_version_ = key == kFormatVersionKey;
    } else {
      field_ = static_cast<Field>(std::find(kFieldNames, kFieldNames + kNumFields, key) - kFieldNames);
      if (field_ == kNumFields)
        fail(subject(), ": unknown field ", in_quotes(key), ", expected dtype, shape and data_offsets");
      if (seen_[field_]) fail(subject(), ": duplicate field ", in_quotes(key));
      seen_[field_] = true;
    }
  }

  void begin_entry(const std::string& key) {
    if (key == "__metadata__") {
      entry_ = nullptr;
      if (std::exchange(has_metadata_, true)) fail("duplicate key \"__metadata__\"");
      return;
    }
    const auto [entry, is_new] = tensors.try_emplace(key);
    entry_ = &*entry;
    if (!is_new) fail(subject(), " is listed twice");
    if (static_cast<int64_t>(tensors.size()) > kMaxTensors) fail("more than ", kMaxTensors, " tensors");
    seen_.reset();
    offsets_found_ = 0;
  }

  void on_open(char bracket) override {
    if (depth() == 0) return;  // parse_safetensors_header() has checked the '{'
    if (depth() == 1 && bracket == '{') return;
    if (depth() == 2 && bracket == '[' && !in_metadata() && field_ != dtype) return;
    unexpected(bracket == '{' ? "an object" : "a list");
  }

  void on_close() override {
    if (depth() != 1 || in_metadata()) return;
    for (int field = 0; field < kNumFields; ++field)
      if (!seen_[field]) fail(subject(), " has no ", kFieldNames[field]);
    if (offsets_found_ != 2) fail(subject(), ": data_offsets of ", offsets_found_, " numbers, expected [begin, end]");
    check_size();
  }

  void on_string(std::string& text) override {
    if (depth() == 2 && in_metadata()) return check_version(text);
    if (depth() != 2 || field_ != dtype) unexpected("a string");
    if (text == "U32") text = name_of(DType::i32);  // the same bits; MLX packs integers into them
    const auto known =
        std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](DType d) { return text == name_of(d); });
    if (known == std::end(kDTypes)) {
      std::string names;
      for (DType d : kDTypes) names += (names.empty() ? "" : ", ") + std::string(name_of(d));
      fail(subject(), " has dtype ", in_quotes(text), ", expected one of ", names);
    }
    entry_->second.dtype = *known;
  }

  void on_unsigned(uint64_t value) override {
    if (depth() != 3) unexpected("a number");
    TensorEntry& tensor = entry_->second;
    if (field_ == shape) {
      if (tensor.shape.size() == kMaxTensorDims) fail(subject(), " has more than ", kMaxTensorDims, " dimensions");
      if (value > std::numeric_limits<int64_t>::max()) fail(subject(), ": dimension ", value, " is beyond 63 bits");
      tensor.shape.push_back(static_cast<int64_t>(value));
    } else {
      if (offsets_found_ == 2) fail(subject(), ": data_offsets of more than 2 numbers, expected [begin, end]");
      (offsets_found_++ == 0 ? tensor.begin : tensor.end) = value;
    }
  }

  void on_other(const char* kind) override { unexpected(kind); }

  [[noreturn]] void unexpected(const char* what) const {
    if (depth() == 1) fail(subject(), " is ", what, ", expected an object");
    if (in_metadata()) fail("__metadata__ holds ", what, ", expected strings only");
    if (depth() == 2) fail(subject(), ": ", kFieldNames[field_], " is ", what, ", expected ", expected());
    fail(subject(), ": ", kFieldNames[field_], " holds ", what, ", expected ", expected());
  }
  const char* expected() const { return field_ == dtype ? "a string" : "a list of unsigned 64-bit integers"; }

  void check_version(const std::string& value) const {
    if (is_version_ && value != kFormatVersion)
      fail(kFormatVersionKey, " is ", in_quotes(value), ", expected \"", kFormatVersion,
           "\": install the longcat that wrote the file, or a later one");
  }

  // Requires end - begin = shape x dtype. Every product must fit in 63 bits, even with a zero among the dimensions, so
  // that later code can multiply any of them without a check.
  void check_size() const {
    const TensorEntry& tensor = entry_->second;
    if (tensor.begin > tensor.end)
      fail(subject(), ": data_offsets [", tensor.begin, ", ", tensor.end, "] end before they begin");
    int64_t bound = size_of(tensor.dtype);
    bool empty = false, overflow = false;
    for (int64_t extent : tensor.shape) {
      overflow |= __builtin_mul_overflow(bound, std::max<int64_t>(extent, 1), &bound);
      empty |= extent == 0;
    }
    if (overflow) fail(subject(), ": the size of ", describe(tensor), " overflows 64 bits");
    const uint64_t needed = empty ? 0 : static_cast<uint64_t>(bound);
    if (tensor.end - tensor.begin != needed)
      fail(subject(), ": data_offsets span ", tensor.end - tensor.begin, " bytes, ", describe(tensor), " takes ",
           needed);
  }

  static std::string describe(const TensorEntry& tensor) {
    std::string text = std::string(name_of(tensor.dtype)) + " [";
    for (size_t d = 0; d < tensor.shape.size(); ++d) text += (d ? ", " : "") + std::to_string(tensor.shape[d]);
    return text + "]";
  }

  std::pair<const std::string, TensorEntry>* entry_ = nullptr;  // the entry being read; nullptr: __metadata__
  Field field_ = dtype;
  std::bitset<kNumFields> seen_;
  int offsets_found_ = 0;
  bool has_metadata_ = false, is_version_ = false;
  std::set<std::string> metadata_keys_;
};

// The tensors must tile [0, data_bytes): the format allows neither overlaps nor bytes that belong to no tensor.
void check_layout(const std::map<std::string, TensorEntry>& tensors, uint64_t header_bytes, uint64_t data_bytes,
                  const std::string& where) {
  std::vector<const std::pair<const std::string, TensorEntry>*> by_offset;
  by_offset.reserve(tensors.size());
  for (const auto& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });

  uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const auto* tensor : by_offset) {
    const auto& [name, entry] = *tensor;
    if (entry.begin < covered)
      throw Error(str_cat(where, ": tensor ", in_quotes(name), " begins at byte ", entry.begin, ", inside tensor ",
                          in_quotes(*previous), " that ends at ", covered, ": the file is damaged, download it again"));
    if (entry.begin > covered)
      throw Error(str_cat(where, ": tensor ", in_quotes(name), " begins at byte ", entry.begin, ", expected ", covered,
                          ": bytes between belong to no tensor; the file is damaged, download it again"));
    covered = entry.end;
    previous = &name;
  }
  if (covered != data_bytes) {
    const uint64_t before = kLengthBytes + header_bytes;
    throw Error(str_cat(where, ": ", data_bytes < covered ? "truncated: " : "too long: ", before + data_bytes,
                        " bytes found, ", before, " + ", covered, " (header + data) expected: download it again"));
  }
}

// Keeps the weight_map of an index and skips the rest.
class IndexEvents final : public JsonEvents {
 public:
  explicit IndexEvents(std::string where) : JsonEvents(std::move(where), kMaxHeaderDepth) {}

  std::map<std::string, int32_t> weight_map;
  std::map<std::string, int32_t> shards;  // name -> number, in order of appearance
  bool has_weight_map = false;

 private:
  void on_key(std::string& key) override {
    if (depth() == 1) {
      in_weight_map_ = key == "weight_map";
      if (in_weight_map_ && std::exchange(has_weight_map, true)) fail("duplicate key \"weight_map\"");
    } else if (in_weight_map_) {
      const auto [entry, is_new] = weight_map.try_emplace(key, -1);
      if (!is_new) fail("weight_map: tensor ", in_quotes(key), " is listed twice");
      if (static_cast<int64_t>(weight_map.size()) > kMaxTensors) fail("more than ", kMaxTensors, " tensors");
      entry_ = &*entry;
    }
  }

  void on_open(char bracket) override {
    if (depth() == 0 && bracket != '{') fail("a list, expected an object");
    if (!in_weight_map_) return;
    if (depth() != 1 || bracket != '{') unexpected(bracket == '{' ? "an object" : "a list");
  }

  void on_close() override {
    if (depth() == 1) in_weight_map_ = false;
  }

  void on_string(std::string& text) override {
    if (depth() == 0 || (in_weight_map_ && depth() == 1)) unexpected("a string");
    if (!in_weight_map_) return;
    const auto [shard, is_new] = shards.try_emplace(text, static_cast<int32_t>(shards.size()));
    if (is_new) check_shard_name(text);
    if (static_cast<int64_t>(shards.size()) > kMaxShards) fail("more than ", kMaxShards, " shards");
    entry_->second = shard->second;
  }

  void on_unsigned(uint64_t) override { on_other("a number"); }
  void on_other(const char* kind) override {
    if (depth() == 0 || in_weight_map_) unexpected(kind);
  }

  [[noreturn]] void unexpected(const char* what) const {
    if (depth() == 0) fail(what, ", expected an object");
    if (depth() == 1) fail("weight_map is ", what, ", expected an object of tensor name -> file name");
    fail("weight_map: ", what, " for tensor ", in_quotes(entry_->first), ", expected a file name");
  }

  void check_shard_name(std::string_view name) const {
    constexpr std::string_view kSuffix = ".safetensors";
    bool plain = name.size() > kSuffix.size() && name.size() <= 255 && name.ends_with(kSuffix);
    for (char c : name) plain &= c != '/' && c != '\\' && static_cast<unsigned char>(c) >= 0x20;
    if (!plain)
      fail("tensor ", in_quotes(entry_->first), " is said to be in ", in_quotes(name),
           ", expected the plain name of a .safetensors file in this folder");
  }

  bool in_weight_map_ = false;
  std::pair<const std::string, int32_t>* entry_ = nullptr;
};

// Lists the first few of `names`, for a message.
std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + printable(names[i]);
  return names.size() > kShown ? text + ", ..." : text;
}

// Returns the header of a mapped file, after a check of its length.
std::string_view header_of(const MappedFile& file, const std::string& where) {
  const std::string_view text = file.text();
  if (text.starts_with("version https://git-lfs"))
    throw Error(where + ": a Git LFS pointer, not the file itself: run `git lfs pull` in the folder");
  if (text.size() < kLengthBytes)
    throw Error(str_cat(where, ": truncated: ", text.size(), " bytes found, at least ", kLengthBytes,
                        " expected: download it again"));
  uint64_t header_bytes = 0;
  for (uint64_t i = 0; i < kLengthBytes; ++i)
    header_bytes |= static_cast<uint64_t>(static_cast<unsigned char>(text[i])) << (8 * i);
  if (header_bytes < 2 || header_bytes > static_cast<uint64_t>(kMaxHeaderBytes))
    throw Error(str_cat(where, ": header of ", header_bytes, " bytes announced, 2 to ", kMaxHeaderBytes,
                        " expected: not a safetensors file, or damaged; download it again"));
  if (header_bytes > text.size() - kLengthBytes)
    throw Error(str_cat(where, ": truncated: ", text.size(), " bytes found, at least ", kLengthBytes, " + ",
                        header_bytes, " (header) expected: download it again"));
  return text.substr(kLengthBytes, header_bytes);
}

// Returns the file to open when there is no index.
std::string single_file_of(const fs::path& folder) {
  if (fs::exists(folder / "model.safetensors")) return "model.safetensors";
  std::vector<std::string> safetensors, others;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const fs::path name = entry.path().filename(), extension = name.extension();
    if (extension == ".safetensors") safetensors.push_back(name);
    for (const char* other : {".bin", ".pt", ".pth", ".ckpt", ".gguf"})
      if (extension == other) others.push_back(name);
  }
  if (safetensors.size() == 1) return safetensors[0];
  std::sort(safetensors.begin(), safetensors.end());
  std::sort(others.begin(), others.end());

  const std::string where = "[safetensors] " + printable_path(folder);
  if (!safetensors.empty())
    throw Error(str_cat(where, ": ", safetensors.size(), " .safetensors files (", some_of(safetensors), ") but no ",
                        kIndexName, " that says which belong together: download it too"));
  if (others.empty())
    throw Error(
        str_cat(where, ": no .safetensors file: expected ", kIndexName, " with its shards, or model.safetensors"));
  if (others[0].ends_with(".gguf"))
    throw Error(str_cat(where, ": ", printable(others[0]),
                        " is a GGUF file: longcat reads safetensors only; download the original checkpoint"));
  throw Error(str_cat(where, ": ", printable(others[0]),
                      " is a pickle, which can run code: longcat reads safetensors only; convert it with "
                      "save_pretrained(folder, safe_serialization=True) of transformers"));
}

}  // namespace

std::map<std::string, TensorEntry> parse_safetensors_header(std::string_view header_json, uint64_t data_bytes,
                                                            const std::string& where) {
  if (static_cast<int64_t>(header_json.size()) > kMaxHeaderBytes)
    throw Error(
        str_cat(area(where), ": header of ", header_json.size(), " bytes, at most ", kMaxHeaderBytes, " expected"));
  if (!header_json.starts_with('{'))
    throw Error(str_cat(area(where), ": the header begins with ", in_quotes(header_json.substr(0, 1)),
                        ", expected \"{\": not a safetensors file, or damaged; download it again"));
  // Every tensor has one such key, and a string cannot hold the key unescaped. So too many tensors are refused before
  // one is read.
  int64_t num_dtype_keys = 0;
  constexpr std::string_view kDtypeKey = "\"dtype\"";
  for (size_t at = 0; (at = header_json.find(kDtypeKey, at)) != std::string_view::npos; at += kDtypeKey.size())
    if (++num_dtype_keys > kMaxTensors) throw Error(str_cat(area(where), ": more than ", kMaxTensors, " tensors"));
  HeaderEvents events(area(where));
  events.parse(header_json);
  check_layout(events.tensors, header_json.size(), data_bytes, area(where));
  return std::move(events.tensors);
}

ShardIndex parse_safetensors_index(std::string_view text, const std::string& where) {
  if (static_cast<int64_t>(text.size()) > kMaxIndexBytes)
    throw Error(str_cat(area(where), ": ", text.size(), " bytes, at most ", kMaxIndexBytes, " expected"));
  IndexEvents events(area(where));
  events.parse(text);
  if (!events.has_weight_map)
    throw Error(area(where) + ": no \"weight_map\": not an index, or damaged; download it again");
  if (events.weight_map.empty()) throw Error(area(where) + ": \"weight_map\" is empty, expected at least one tensor");
  ShardIndex index{.shards = std::vector<std::string>(events.shards.size()),
                   .weight_map = std::move(events.weight_map)};
  for (const auto& [name, number] : events.shards) index.shards[number] = name;
  return index;
}

std::string other_spelling(const std::string& name) {
  constexpr std::pair<const char*, const char*> kSpellings[] = {
      {"model.ngram_embeddings.embedders.", "model.oe_embed_tokens"},
      {"model.ngram_embeddings.post_projs.", "model.oe_embed_proj"}};
  for (const auto& [lite, sparse] : kSpellings)
    for (const auto& [from, to] : {std::pair(lite, sparse), std::pair(sparse, lite)})
      if (const size_t end = std::string_view(from).size();
          name.starts_with(from) && name.size() > end && '0' <= name[end] && name[end] <= '9')
        return to + name.substr(end);
  return {};
}

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  require_model_folder(folder, "[safetensors]");
  try {
    if (const fs::path index = folder / kIndexName; fs::exists(index)) {
      add_indexed_shards(index);
    } else {
      add_shard(single_file_of(folder));
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(str_cat("[safetensors] ", printable_path(folder), " cannot be read: ", error.code().message()));
  }
}

void Checkpoint::add_shard(const std::string& file_name) {
  const fs::path path = folder_ / file_name;
  const MappedFile& file = shards_.emplace_back(path, area(path));
  const std::string_view header = header_of(file, area(path));
  const std::byte* data = file.bytes().data() + kLengthBytes + header.size();
  auto entries = parse_safetensors_header(header, file.bytes().size() - kLengthBytes - header.size(), path);
  for (auto& [name, entry] : entries) {
    const auto [stored, is_new] = tensors_.try_emplace(name);
    if (!is_new)
      throw Error(str_cat(area(path), ": tensor ", in_quotes(name), " is also in ",
                          printable_path(shards_[stored->second.shard].path().filename()), ", expected it once"));
    stored->second = {.dtype = entry.dtype,
                      .shape = std::move(entry.shape),
                      .data = data + entry.begin,
                      .num_bytes = entry.end - entry.begin,
                      .shard = static_cast<int32_t>(shards_.size()) - 1};
  }
  if (static_cast<int64_t>(tensors_.size()) > kMaxTensors)
    throw Error(str_cat("[safetensors] ", printable_path(folder_), ": more than ", kMaxTensors, " tensors"));
}

void Checkpoint::add_indexed_shards(const fs::path& index_path) {
  const std::string where = area(index_path);
  ShardIndex index;
  {
    const MappedFile file(index_path, where);
    index = parse_safetensors_index(file.text(), index_path);
  }
  // A shard may be missing when it has the MTP layer alone, which no model needs.
  std::set<int32_t> needed;
  for (const auto& [name, shard] : index.weight_map)
    if (!name.starts_with("model.mtp.")) needed.insert(shard);
  std::vector<std::string> missing;
  std::set<int32_t> left_out;
  for (size_t i = 0; i < index.shards.size(); ++i) {
    const auto shard = static_cast<int32_t>(i);
    if (fs::exists(folder_ / index.shards[i])) continue;
    if (needed.contains(shard)) missing.push_back(index.shards[i]);
    left_out.insert(shard);
  }
  if (!missing.empty())
    throw Error(str_cat(where, ": ", missing.size(), " of ", index.shards.size(), " shards not found (",
                        some_of(missing), "): the download is incomplete, fetch them too"));

  shards_.reserve(index.shards.size());
  std::vector<int32_t> position(index.shards.size(), -1);  // in shards_
  for (size_t i = 0; i < index.shards.size(); ++i) {
    if (left_out.contains(static_cast<int32_t>(i))) continue;
    position[i] = static_cast<int32_t>(shards_.size());
    add_shard(index.shards[i]);
  }
  for (const auto& [name, shard] : index.weight_map)
    if (const StoredTensor* tensor = find(name);
        !left_out.contains(shard) && (!tensor || tensor->shard != position[static_cast<size_t>(shard)]))
      missing.push_back(name);
  if (!missing.empty())
    throw Error(str_cat(where, ": ", missing.size(), " tensors are not in the shard that the index names (",
                        some_of(missing), "): index and shards do not belong together; download them again"));
}

const StoredTensor* Checkpoint::find(const std::string& name) const {
  auto entry = tensors_.find(name);
  if (entry == tensors_.end()) entry = tensors_.find(other_spelling(name));
  return entry == tensors_.end() ? nullptr : &entry->second;
}

}  // namespace longcat
