#include "engine/load_model.h"

#include <algorithm>
#include <span>
#include <utility>

#include "ops/backend.h"

namespace longcat {

namespace {

// `known` lists the values beside "auto", "f32" and "bf16".
DType parse_dtype(const char* option, const std::string& name, DType automatic, std::span<const DType> known) {
  const auto has = [&](DType dtype) { return std::ranges::find(known, dtype) != known.end(); };
  if (name == "auto") return automatic;
  if (name == "f32" || name == "float32" || name == "float") return DType::f32;
  if (name == "bf16" || name == "bfloat16") return DType::bf16;
  if (has(DType::f8_e4m3) && (name == "fp8" || name == "fp8_e4m3")) return DType::f8_e4m3;
  if (has(DType::i8) && name == "int8") return DType::i8;
  throw std::invalid_argument(str_cat(option, "=\"", name, "\" is not known: use \"auto\", \"f32\"",
                                      has(DType::f8_e4m3) ? ", \"bf16\", \"fp8\" or \"int8\""
                                      : has(DType::i8)    ? ", \"bf16\" or \"int8\""
                                                          : " or \"bf16\""));
}

Fp8OnLoad parse_quantization(const std::string& name) {
  if (name.empty()) return Fp8OnLoad::none;
  if (name == "fp8") return Fp8OnLoad::all;
  if (name == "fp8-experts") return Fp8OnLoad::experts;
  throw std::invalid_argument(str_cat("quantization=\"", name, "\" is not known: use \"fp8\" or \"fp8-experts\""));
}

void require_positive(const char* option, int64_t value) {
  if (value < 1) throw std::invalid_argument(str_cat(option, "=", value, "; expected at least 1"));
}

// Returns the communicator once the options are checked against it; a communicator of one rank if there is none.
std::unique_ptr<Communicator> checked(const EngineOptions& options, std::unique_ptr<Communicator> world) {
  check(options);
  if (!world) world = make_single_communicator();
  const int64_t wanted = options.world_size();
  if (world->size() != wanted)
    throw std::invalid_argument(str_cat("[parallel] tensor_parallel_size=", options.tensor_parallel_size,
                                        " and expert_parallel_size=", options.expert_parallel_size, " are ", wanted,
                                        wanted == 1 ? " rank" : " ranks", ", and this job has ", world->size(),
                                        ": start it with mpirun -n ", wanted));
  return world;
}

// FNV-1a hash.
class Fingerprint {
 public:
  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
      value_ = (value_ ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ull;
  }
  void add(const std::string& text) { add(text.data(), text.size() + 1); }
  void add(int64_t number) { add(&number, sizeof(number)); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325ull;
};

// Hash of all options that change what a rank computes.
uint64_t fingerprint_of(const EngineOptions& o) {
  Fingerprint print;
  for (const std::string& text : {o.dtype, o.quantization, o.kv_cache_dtype, o.index_cache_dtype}) print.add(text);
  for (const int64_t number :
       {o.max_model_len, o.max_num_seqs, o.max_num_batched_tokens, o.tensor_parallel_size, o.expert_parallel_size,
        static_cast<int64_t>(o.speculation.method), o.speculation.num_tokens, o.speculation.draft_vocab})
    print.add(number);
  return print.value();
}

// Hash of config.json, the headers, and a few values of some tensors: quick, and enough to tell two checkpoints apart.
uint64_t fingerprint_of(const Checkpoint& checkpoint) {
  constexpr size_t kSamples = 256, kBytes = 64;
  Fingerprint print;
  const MappedFile config(checkpoint.folder() / "config.json", "[config] config.json");
  print.add(config.bytes().data(), config.bytes().size());
  const size_t every = std::max<size_t>(1, checkpoint.tensors().size() / kSamples);
  size_t i = 0;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    print.add(name);
    print.add(static_cast<int64_t>(tensor.dtype));
    for (const int64_t extent : tensor.shape) print.add(extent);
    if (i++ % every == 0) print.add(tensor.data, std::min<size_t>(tensor.num_bytes, kBytes));
  }
  return print.value();
}

// Throws std::invalid_argument when the device cannot read latents or index keys of these dtypes.
void check_cache_dtypes(const EngineOptions& options, DType kv_cache_dtype, DType index_cache_dtype, Ops& ops) {
  if (!ops.reads_latents(kv_cache_dtype))
    throw std::invalid_argument(str_cat("kv_cache_dtype=\"", options.kv_cache_dtype, "\" on ", ops.device().name(),
                                        "; expected \"bf16\" or \"fp8\", or device=\"cpu\""));
  if (!ops.reads_index_keys(index_cache_dtype))
    throw std::invalid_argument(str_cat("index_cache_dtype=\"", options.index_cache_dtype, "\" on ",
                                        ops.device().name(), "; expected \"auto\", or device=\"cpu\""));
}

Placement parse_table_placement(const EngineOptions& options, Ops& ops) {
  const std::span<const Placement> placements = ops.table_placements();
  if (options.ngram_placement == "auto") return placements.front();
  std::string known = "\"auto\"";
  for (const Placement placement : placements) {
    if (options.ngram_placement == name_of(placement)) return placement;
    known += str_cat(placement == placements.back() ? " or \"" : ", \"", name_of(placement), "\"");
  }
  throw std::invalid_argument(
      str_cat("ngram_placement=\"", options.ngram_placement, "\" on ", ops.device().name(), "; expected ", known));
}

// Loads the weights of a rank. If memory runs out, the error says whether the tables could lie elsewhere.
ModelWeights load_weights_of(const Checkpoint& checkpoint, const ModelConfig& config, const Shard& shard, DType dtype,
                             Ops& ops, const EngineOptions& options, const LoadProgress& progress) {
  const Placement tables = parse_table_placement(options, ops);
  try {
    return load_weights(checkpoint, config, shard, dtype, ops, tables, parse_quantization(options.quantization),
                        options.speculation.by_mtp(), progress, options.speculation.draft_vocab);
  } catch (const OutOfMemory& error) {
    if (!config.ngram || tables == ops.table_placements().front()) throw;
    throw OutOfMemory(str_cat(error.what(), "; ngram_placement=\"", name_of(ops.table_placements().front()),
                              "\" keeps the N-gram tables out of there"));
  }
}

}  // namespace

void check(const EngineOptions& options) {
  parse_quantization(options.quantization);
  require_positive("max_num_seqs", options.max_num_seqs);
  require_positive("max_num_batched_tokens", options.max_num_batched_tokens);
  require_positive("max_num_queued", options.max_num_queued);
  if (options.max_num_seqs > options.max_num_batched_tokens)
    throw std::invalid_argument(str_cat("max_num_seqs=", options.max_num_seqs,
                                        " is more than max_num_batched_tokens=", options.max_num_batched_tokens,
                                        ": a step could not hold one token of each request"));
  if (options.num_threads < 0 || options.num_threads > 1024)
    throw std::invalid_argument(
        str_cat("num_threads=", options.num_threads, "; expected 1 to 1024, or 0 for one per core"));
  if (options.max_model_len < 0 || options.kv_cache_memory < 0)
    throw std::invalid_argument("max_model_len and kv_cache_memory must not be negative");
  require_positive("tensor_parallel_size", options.tensor_parallel_size);
  require_positive("expert_parallel_size", options.expert_parallel_size);
  const int64_t draft_vocab = options.speculation.draft_vocab, world = options.world_size();
  if (draft_vocab < 0) throw std::invalid_argument(str_cat("draft_vocab=", draft_vocab, "; expected 0 or more"));
  if (draft_vocab > 0 && world > 1)
    throw std::invalid_argument(str_cat("draft_vocab=", draft_vocab, " with ", world,
                                        " ranks, which share the rows of the head; expected one rank: leave it out"));
}

NumberFormats number_formats(const EngineOptions& options, const ModelConfig& config) {
  const DType dtype =
      parse_dtype("dtype", options.dtype, config.torch_dtype == DType::bf16 ? DType::bf16 : DType::f32, {});
  constexpr DType kLatents[] = {DType::f8_e4m3, DType::i8}, kIndexKeys[] = {DType::i8};
  const DType latents = parse_dtype("kv_cache_dtype", options.kv_cache_dtype, dtype, kLatents);
  const DType index_keys =
      parse_dtype("index_cache_dtype", options.index_cache_dtype, CacheDTypes(latents).index_keys, kIndexKeys);
  if (options.index_cache_dtype != "auto" && !config.sparse)
    throw std::invalid_argument(str_cat("index_cache_dtype=\"", options.index_cache_dtype,
                                        "\", but the checkpoint has dense attention and no index keys; leave it out"));
  return {.dtype = dtype, .kv_cache_dtype = latents, .index_cache_dtype = index_keys};
}

LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options, const LoadProgress& progress,
                       std::unique_ptr<Communicator> world, Backend backend) {
  world = checked(options, std::move(world));
  try {
    ModelConfig config = load_model_config(folder);
    const Shard shard = make_shard(config, options.tensor_parallel_size, options.expert_parallel_size, world->rank());
    const auto [dtype, kv_cache_dtype, index_cache_dtype] = number_formats(options, config);
    Checkpoint checkpoint(folder);
    Lockstep lockstep(*world);
    if (lockstep.has_peers()) {
      lockstep.require_same(fingerprint_of(options), "options");
      lockstep.require_same(fingerprint_of(checkpoint), "checkpoint files");
    }
    const int num_communicators = world->size() > 1 ? 2 : 0;  // of all ranks, and of a tensor-parallel group
    std::unique_ptr<Ops> ops = std::move(backend.ops);
    if (!ops) ops = make_ops(options.device, options.num_threads, options.gpu_memory_utilization, num_communicators);
    check_cache_dtypes(options, kv_cache_dtype, index_cache_dtype, *ops);
    ops->use_dtype(dtype);
    ModelWeights weights = load_weights_of(checkpoint, config, shard, dtype, *ops, options, progress);
    const int64_t largest_sum = options.max_num_batched_tokens * config.hidden_size * 4;
    const auto ranks_of_color = [&](int color) {
      return backend.communicator(world->split(color), ops->device(), largest_sum);
    };
    Ranks ranks{.shard = shard, .world = ranks_of_color(0), .tp = ranks_of_color(shard.tp_group())};
    for (const MappedFile& shard : checkpoint.shards()) shard.check();
    auto model = std::make_unique<Model>(*ops, config, std::move(ranks), std::move(weights),
                                         options.max_num_batched_tokens, options.max_draws());
    return {.config = std::move(config),
            .dtype = dtype,
            .kv_cache_dtype = kv_cache_dtype,
            .index_cache_dtype = index_cache_dtype,
            .checkpoint = std::move(checkpoint),
            .lockstep = std::move(lockstep),
            .ops = std::move(ops),
            .model = std::move(model)};
  } catch (const std::exception& error) {
    world->abort(str_cat("[parallel] rank ", world->rank(), " failed: ", error.what()));
    throw;
  }
}

}  // namespace longcat
