#include "io/model_config.h"

#include <array>
#include <set>

#include "base/error.h"
#include "base/mapped_file.h"
#include "io/config_fields.h"
#include "io/json_events.h"
#include "io/model_folder.h"
#include "io/printable.h"

namespace longcat {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int kMaxConfigDepth = 16;
constexpr int64_t kMaxConfigValues = 100'000;  // the largest real files list 10^4 modules that are not quantised

// Limits far above every published model, yet small enough that products of a few of them fit in 63 bits.
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxLayers = 1000;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr int64_t kMaxRank = 1 << 16;
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxPositions = 1 << 26;
constexpr double kMaxParameters = 1e14;
constexpr double kTiny = 1e-30;  // larger values are not zero as float

constexpr const char* kNgramArchitecture = "LongcatFlashNgramForCausalLM";
constexpr const char* kPlainArchitecture = "LongcatFlashForCausalLM";
constexpr const char* kSparseArchitecture = "LongcatCausalLM";
constexpr const char* kScope =
    "this runtime runs LongCat-Flash-Lite, LongCat-Flash-Lite-Sparse and LongCat-Flash-Chat only";

// Related models with other maths: they would load and generate nonsense.
struct Relative {
  const char* architecture;             // a prefix of the name
  const char* model_type;               // a prefix
  std::array<const char*, 2> features;  // fields that only this model sets to true, a number or a string
  const char* reason;
};
constexpr Relative kRefused[] = {
    {"LongcatFlashPro",
     "longcat_flash_pro",
     {"mtp_replicate_modules", "mtp_disable_over_tokenizer"},
     "LongCat-2.0, whose attention (LSA) and MTP modules differ"},
    {"LongcatNext", "longcat_next", {}, "LongCat-Next, whose N-gram rule differs for token ids from 131072 on"},
};

// Fields that only a checkpoint with sparse attention has.
constexpr const char* kSparseFields[] = {"index_topk", "index_n_heads", "index_head_dim"};

// The first pass over the text checks grammar, depth and duplicate keys, of which a document would keep only one.
class ConfigEvents final : public JsonEvents {
 public:
  explicit ConfigEvents(std::string where) : JsonEvents(std::move(where), kMaxConfigDepth) {}

 private:
  void on_key(std::string& key) override {
    if (!keys_.back().insert(key).second) fail("duplicate key ", in_quotes(key));
  }
  void on_open(char) override {
    count_value();
    keys_.emplace_back();
  }
  void on_close() override { keys_.pop_back(); }
  void on_string(std::string&) override { count_value(); }
  void on_unsigned(uint64_t) override { count_value(); }
  void on_other(const char*) override { count_value(); }

  void count_value() {
    if (++num_values_ > kMaxConfigValues) fail("more than ", kMaxConfigValues, " values");
  }

  int64_t num_values_ = 0;
  std::vector<std::set<std::string>> keys_;  // one set per open bracket
};

json parse_object(std::string_view text, const std::string& where) {
  if (static_cast<int64_t>(text.size()) > kMaxConfigBytes)
    throw Error(str_cat(where, ": ", text.size(), " bytes, at most ", kMaxConfigBytes, " expected"));
  ConfigEvents(where).parse(text);
  json config = json::parse(text.begin(), text.end());
  if (!config.is_object()) throw Error(str_cat(where, ": ", config.type_name(), ", expected an object"));
  return config;
}

bool is_set(const json* field) {
  return field && (field->is_number() ? field->get<double>() != 0 : !field->is_boolean() || field->get<bool>());
}

std::string describe(const std::string& architecture, const std::string& model_type) {
  if (architecture.empty())
    return model_type.empty() ? "a model without architectures" : "model_type " + in_quotes(model_type);
  return "architecture " + in_quotes(architecture) +
         (model_type.empty() ? "" : ", model_type " + in_quotes(model_type));
}

// Whether config.json describes LongCat-Flash-Lite-Sparse: attention_method "LSA" with index_topk. LongCat-2.0 has the
// same architecture name, so the name alone does not decide. Throws where only a part of the description is there.
bool is_sparse(ConfigFields& fields, const std::string& architecture, const std::string& found,
               const std::string& where) {
  const json* method = fields.find({"attention_method"});
  const bool is_lsa = method && *method == "LSA";
  if (is_lsa && is_set(fields.find({"index_topk"}))) return true;
  const std::string shown = method ? ConfigFields::show(*method) : "absent";
  if (is_lsa || architecture == kSparseArchitecture)
    throw Error(
        str_cat(where, ": ", found, " with attention_method ", shown, is_lsa ? " but no index_topk" : "",
                ", expected attention_method \"LSA\" and index_topk, as in LongCat-Flash-Lite-Sparse: ", kScope));
  for (const char* field : kSparseFields)
    if (is_set(fields.find({field})))
      throw Error(str_cat(where, ": ", found, " with ", field, " but attention_method ", shown,
                          ", expected \"LSA\", as in LongCat-Flash-Lite-Sparse: ", kScope));
  return false;
}

// The architecture decides; model_type counts only where there is none. Throws at once, because the other fields of an
// unknown model have no known meaning.
std::string read_architecture(ConfigFields& fields, const std::string& where) {
  const json* names = fields.find({"architectures"});
  const json* type = fields.find({"model_type"});
  const std::string model_type = type && type->is_string() ? type->get<std::string>() : "";
  std::string architecture;
  if (names && names->is_array() && names->size() == 1 && names->front().is_string()) {
    architecture = names->front().get<std::string>();
  } else if (names && !(names->is_array() && names->empty())) {
    throw Error(str_cat(where, ": architectures is ", ConfigFields::show(*names), ", expected [\"", kNgramArchitecture,
                        "\"]: ", kScope));
  }

  const std::string found = describe(architecture, model_type);
  for (const Relative& relative : kRefused)
    if (architecture.starts_with(relative.architecture) || model_type.starts_with(relative.model_type))
      throw Error(str_cat(where, ": ", found, " is ", relative.reason, ": ", kScope));
  // A checkpoint of Sparse that was saved again may have the features of LongCat-2.0.
  const bool is_known = architecture.empty() || architecture == kSparseArchitecture ||
                        architecture == kNgramArchitecture || architecture == kPlainArchitecture;
  if (is_known && is_sparse(fields, architecture, found, where)) return kSparseArchitecture;
  for (const Relative& relative : kRefused)
    for (const char* feature : relative.features)
      if (feature && is_set(fields.find({feature})))
        throw Error(str_cat(where, ": ", found, " with ", feature, " is ", relative.reason, ": ", kScope));
  if (architecture == kNgramArchitecture || architecture == kPlainArchitecture) return architecture;
  if (architecture.empty() && model_type == "longcat_flash_ngram") return kNgramArchitecture;
  if (architecture.empty() && model_type == "longcat_flash") return kPlainArchitecture;
  throw Error(str_cat(where, ": ", found, ", expected ", kNgramArchitecture, ", ", kSparseArchitecture, " or ",
                      kPlainArchitecture, ": ", kScope));
}

// num_layers counts layers with two attentions each. Hugging Face sets num_hidden_layers to twice that for its KV
// cache.
int64_t read_num_layers(ConfigFields& fields) {
  if (!fields.has("num_layers") && fields.has("num_hidden_layers")) {
    const int64_t sub_layers = fields.integer({"num_hidden_layers"}, 2, 2 * kMaxLayers);
    if (sub_layers % 2) fields.problems().add("num_hidden_layers is ", sub_layers, ", expected twice num_layers");
    return sub_layers / 2;
  }
  const int64_t num_layers = fields.integer({"num_layers"}, 1, kMaxLayers);
  const int64_t sub_layers = fields.integer({"num_hidden_layers"}, 1, 2 * kMaxLayers, 2 * num_layers);
  if (sub_layers != 2 * num_layers && sub_layers != num_layers && fields.problems().none())
    fields.problems().add("num_hidden_layers is ", sub_layers, ", expected ", 2 * num_layers, " (twice num_layers)");
  return num_layers;
}

void read_sizes(ConfigFields& fields, ModelConfig& config) {
  config.vocab_size = fields.integer({"vocab_size"}, 1, kMaxVocab);
  config.hidden_size = fields.integer({"hidden_size"}, 1, kMaxWidth);
  config.num_layers = read_num_layers(fields);
  config.num_attention_heads = fields.integer({"num_attention_heads"}, 1, kMaxHeads);
  config.q_lora_rank = fields.integer({"q_lora_rank"}, 1, kMaxRank);
  config.kv_lora_rank = fields.integer({"kv_lora_rank"}, 1, kMaxRank);
  config.qk_nope_head_dim = fields.integer({"qk_nope_head_dim"}, 1, kMaxHeadDim);
  config.qk_rope_head_dim = fields.integer({"qk_rope_head_dim"}, 2, kMaxHeadDim);
  config.v_head_dim = fields.integer({"v_head_dim"}, 1, kMaxHeadDim);
  config.ffn_hidden_size = fields.integer({"ffn_hidden_size", "intermediate_size"}, 1, kMaxWidth);
  config.expert_ffn_hidden_size = fields.integer({"expert_ffn_hidden_size", "moe_intermediate_size"}, 1, kMaxWidth);
  config.n_routed_experts = fields.integer({"n_routed_experts"}, 1, kMaxExperts);
  config.zero_expert_num = fields.integer({"zero_expert_num"}, 0, kMaxExperts, 0);
  config.moe_topk = fields.integer({"moe_topk"}, 1, 2 * kMaxExperts);
  config.max_position_embeddings = fields.integer({"max_position_embeddings"}, 1, kMaxPositions);
  config.routed_scaling_factor = fields.number({"routed_scaling_factor"}, kTiny, 1e6);
  config.rms_norm_eps = fields.number({"rms_norm_eps"}, kTiny, 1, 1e-5);
  if (config.qk_rope_head_dim % 2)
    fields.problems().add("qk_rope_head_dim is ", config.qk_rope_head_dim, ", expected an even number");
}

// Choices that all published models make alike. Most have only one supported value.
void read_choices(ConfigFields& fields, ModelConfig& config) {
  fields.only("hidden_act", "silu", "no other activation is built");
  if (config.architecture != kSparseArchitecture) fields.only("attention_method", "MLA", "no other attention is built");
  fields.only("attention_bias", false, "the projections have no biases");
  fields.only("router_bias", false, "the router has a correction bias for selection only");
  fields.only("partial_rotary_factor", 1.0, "all of qk_rope_head_dim is rotated");
  if (config.zero_expert_num > 0) fields.only("zero_expert_type", "identity", "zero experts return their input");
  config.mla_scale_q_lora = fields.boolean("mla_scale_q_lora", true);
  config.mla_scale_kv_lora = fields.boolean("mla_scale_kv_lora", true);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  config.oe_divides_word = fields.boolean("oe_divides_word", true);
  config.mtp_shares_embed_tokens = fields.boolean("mtp_shares_embed_tokens", false);
  config.mla_norm_eps = fields.optional_number("mla_norm_eps", kTiny, 1);
  if (fields.boolean("norm_topk_prob", false))
    config.warnings.push_back("norm_topk_prob is true: read as false, as the reference implementation ignores it");
}

std::optional<NgramConfig> read_ngram(ConfigFields& fields, const ModelConfig& config) {
  const bool expected = config.architecture != kPlainArchitecture;
  const bool found = fields.find({"ngram_vocab_size_ratio", "oe_vocab_size_ratio"}) ||
                     fields.find({"emb_neighbor_num", "oe_neighbor_num"}) ||
                     fields.find({"emb_split_num", "oe_split_num"});
  if (!expected && !found) return std::nullopt;
  const double ratio = fields.number({"ngram_vocab_size_ratio", "oe_vocab_size_ratio"}, kTiny, 1e6);
  const NgramConfig ngram{.table_rows = static_cast<int64_t>(ratio * static_cast<double>(config.vocab_size)),
                          .emb_neighbor_num = fields.integer({"emb_neighbor_num", "oe_neighbor_num"}, 2, 16),
                          .emb_split_num = fields.integer({"emb_split_num", "oe_split_num"}, 1, 1024)};
  return ngram;
}

// Which sub-layers have an indexer. index_topk_pattern says so for each ("C": its own selection, "S": the one before);
// cli_factor says the same of every cli_factor-th. Where both are there, they must agree.
std::vector<bool> read_owners(ConfigFields& fields, const ModelConfig& config) {
  const json* pattern = fields.find({"index_topk_pattern"});
  const size_t num_sub_layers = static_cast<size_t>(config.num_sub_layers());
  std::vector<bool> owners(num_sub_layers, true);
  if (!pattern || fields.has("cli_factor")) {
    const int64_t cli_factor = fields.integer({"cli_factor"}, 1, 2);
    for (size_t i = 0; i < num_sub_layers; ++i) owners[i] = i % static_cast<size_t>(cli_factor) == 0;
  }
  if (!pattern) return owners;
  std::string letters;
  if (pattern->is_string()) letters = pattern->get<std::string>();
  if (pattern->is_array())
    for (const json& letter : *pattern) letters += letter.is_string() ? letter.get<std::string>() : "?";
  const auto is_known = [](char letter) { return letter == 'C' || letter == 'S'; };
  if (letters.size() != num_sub_layers || letters.front() != 'C' || !std::ranges::all_of(letters, is_known)) {
    fields.problems().add("index_topk_pattern is ", ConfigFields::show(*pattern), ", expected ", num_sub_layers,
                          " letters \"C\" or \"S\", the first of them \"C\"");
    return owners;
  }
  const bool must_agree = fields.has("cli_factor");
  for (size_t i = 0; i < num_sub_layers; ++i) {
    if (must_agree && owners[i] != (letters[i] == 'C'))
      fields.problems().add("index_topk_pattern is ", ConfigFields::show(*pattern), ", which contradicts cli_factor");
    owners[i] = letters[i] == 'C';
  }
  return owners;
}

std::optional<SparseConfig> read_sparse(ConfigFields& fields, const ModelConfig& config) {
  if (config.architecture != kSparseArchitecture) return std::nullopt;
  ConfigProblems& problems = fields.problems();
  const SparseConfig sparse{.index_n_heads = fields.integer({"index_n_heads"}, 1, kMaxHeads),
                            .index_head_dim = fields.integer({"index_head_dim"}, 2, kMaxHeadDim),
                            .index_topk = fields.integer({"index_topk"}, 1, kMaxPositions),
                            .index_init_tokens = fields.integer({"index_init_tokens"}, 0, kMaxPositions),
                            .index_local_tokens = fields.integer({"index_local_tokens"}, 0, kMaxPositions),
                            .is_owner = read_owners(fields, config),
                            .dsa_mtp_cli = fields.boolean("dsa_mtp_cli", true)};
  if (!fields.has("index_k_norm_type")) problems.missing.push_back("index_k_norm_type");
  fields.only("index_k_norm_type", "rms", "no other norm of the index keys is built");
  fields.only("indexer_rope_interleave", true, "the indexer rotates interleaved pairs");
  fields.only("mtp_disable_over_tokenizer", true, "the MTP layer has a plain word embedding");
  // A copy that was saved again says 3, the number of draft tokens, for the same file.
  if (const json* count = fields.find({"mtp_num_layers"}); count && *count != 1 && *count != 3)
    problems.add("mtp_num_layers is ", ConfigFields::show(*count), ", expected 1 or 3");
  if (problems.none() && sparse.index_init_tokens + sparse.index_local_tokens > sparse.index_topk)
    problems.add("index_init_tokens + index_local_tokens is ", sparse.index_init_tokens + sparse.index_local_tokens,
                 ", expected at most index_topk, ", sparse.index_topk);
  if (problems.none() && config.qk_rope_head_dim > sparse.index_head_dim)
    problems.add("qk_rope_head_dim is ", config.qk_rope_head_dim, ", expected at most index_head_dim, ",
                 sparse.index_head_dim);
  return sparse;
}

std::optional<YarnConfig> read_yarn(const json& scaling, const char* field, int64_t max_position_embeddings,
                                    ConfigProblems& problems) {
  if (!scaling.is_object()) {
    problems.add(field, " is ", ConfigFields::show(scaling), ", expected null or an object");
    return std::nullopt;
  }
  ConfigFields fields(scaling, std::string(field) + ".", problems);
  const auto canonical = [](const std::string& type) { return type == "deepseek_yarn" ? "yarn" : type; };
  const std::string rope_type = canonical(fields.text({"rope_type"})), old_type = canonical(fields.text({"type"}));
  const std::string type = rope_type.empty() ? old_type : rope_type;
  if (!old_type.empty() && old_type != type)
    problems.add(field, ".rope_type is ", in_quotes(type), " but its alias type is ", in_quotes(old_type));
  // transformers 5 always writes rope_parameters: {"rope_theta", "rope_type": "default"} without scaling.
  const bool unscaled = type.empty() && std::string_view(field) == "rope_parameters" && !fields.has("factor");
  if (type == "default" || unscaled) return std::nullopt;
  if (type != "yarn") {
    problems.add(field, ".rope_type is ", in_quotes(type), ", expected \"yarn\", \"deepseek_yarn\" or \"default\"");
    return std::nullopt;
  }
  fields.only("partial_rotary_factor", 1.0, "all of qk_rope_head_dim is rotated");
  YarnConfig yarn{.factor = fields.number({"factor"}, 1, 1e6, std::nullopt, true),
                  .original_max_position_embeddings =
                      fields.integer({"original_max_position_embeddings"}, 1, kMaxPositions, max_position_embeddings),
                  .beta_fast = fields.number({"beta_fast"}, 1e-6, 1e6, 32),
                  .beta_slow = fields.number({"beta_slow"}, 1e-6, 1e6, 1),
                  .mscale = fields.optional_number("mscale", 0, 1e3),
                  .mscale_all_dim = fields.optional_number("mscale_all_dim", 0, 1e3),
                  .attention_factor = fields.optional_number("attention_factor", 1e-6, 1e6),
                  .truncate = fields.boolean("truncate", true)};
  if (yarn.beta_fast < yarn.beta_slow)
    problems.add(field, ".beta_fast is ", yarn.beta_fast, ", expected at least beta_slow, ", yarn.beta_slow);
  return yarn;
}

// Reads rope_theta and rope_scaling, or both inside rope_parameters as transformers 5 writes them.
void read_rope(ConfigFields& fields, ModelConfig& config) {
  const json* theta = fields.find({"rope_theta"});
  const char* source = nullptr;
  for (const char* field : {"rope_scaling", "rope_parameters"}) {
    const json* object = fields.find({field});
    if (!object) continue;
    const std::optional<YarnConfig> yarn = read_yarn(*object, field, config.max_position_embeddings, fields.problems());
    if (source && yarn != config.yarn) fields.problems().add(source, " and ", field, " contradict each other");
    config.yarn = yarn;
    source = field;
    if (const auto inner = object->find("rope_theta"); inner != object->end() && !inner->is_null()) {
      if (theta && *theta != *inner)
        fields.problems().add("rope_theta is ", ConfigFields::show(*theta), " but ", field, ".rope_theta is ",
                              ConfigFields::show(*inner));
      theta = &*inner;
    }
  }
  json holder = json::object();
  if (theta) holder["rope_theta"] = *theta;
  config.rope_theta = ConfigFields(holder, "", fields.problems()).number({"rope_theta"}, 2, 1e12, std::nullopt, true);
}

void read_token_ids(ConfigFields& fields, ModelConfig& config) {
  const int64_t last = config.vocab_size - 1;
  config.bos_token_id = fields.integer({"bos_token_id"}, 0, kMaxVocab, 1);
  const json* eos = fields.find({"eos_token_id"});
  if (!eos || !eos->is_array()) {
    config.eos_token_id = fields.integer({"eos_token_id"}, 0, kMaxVocab, 2);
  } else if (eos->empty() || (eos->size() > 1 && config.ngram)) {
    fields.problems().add("eos_token_id is ", ConfigFields::show(*eos),
                          ", expected one id: it is the segment boundary of the N-gram embedding");
  } else {
    json holder = {{"eos_token_id", eos->front()}};
    config.eos_token_id = ConfigFields(holder, "", fields.problems()).integer({"eos_token_id"}, 0, kMaxVocab);
    if (eos->size() > 1)
      config.warnings.push_back(str_cat("eos_token_id is ", ConfigFields::show(*eos), ": read as its first id"));
  }
  for (const auto& [name, id] : {std::pair("bos_token_id", config.bos_token_id), {"eos_token_id", config.eos_token_id}})
    if (fields.problems().none() && id > last)
      fields.problems().add(name, " is ", id, ", expected an id below vocab_size, ", config.vocab_size);
}

DType read_dtype(ConfigFields& fields) {
  std::string name = fields.text({"torch_dtype", "dtype"});
  if (name.starts_with("torch.")) name.erase(0, 6);
  if (name.empty() || name == "auto" || name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  if (name == "float32") return DType::f32;
  fields.problems().add("torch_dtype is ", in_quotes(name), ", expected bfloat16, float16 or float32");
  return DType::bf16;
}

// Whether weights are stored as e4m3 with a scale per 128 x 128 block. No other stored quantisation is read here:
// `longcat convert` reads others.
bool read_fp8_blocks(ConfigFields& fields, const std::filesystem::path& folder) {
  ConfigProblems& problems = fields.problems();
  const std::string kExpected =
      str_cat("expected none, or quant_method \"fp8\" with weight_block_size [128, 128]: `longcat convert ",
              folder.empty() ? "FOLDER" : printable_path(folder), " OUT` reads AutoRound, GPTQ, compressed-tensors, ",
              "MLX and FP8");
  for (const char* other : {"quantization", "compression_config"})  // MLX; early compressed-tensors
    if (const json* field = fields.find({other})) {
      problems.add(other, " is ", ConfigFields::show(*field), ", ", kExpected);
      return false;
    }
  const json* quantization = fields.find({"quantization_config"});
  if (!quantization) return false;
  if (!quantization->is_object()) {
    problems.add("quantization_config is ", ConfigFields::show(*quantization), ", ", kExpected);
    return false;
  }
  ConfigFields inner(*quantization, "quantization_config.", problems);
  const std::string method = inner.text({"quant_method"});
  if (method != "fp8") {
    problems.add("quantization_config.quant_method is ", in_quotes(method), ", ", kExpected);
    return false;
  }
  if (!inner.has("weight_block_size")) problems.add("quantization_config has no weight_block_size, ", kExpected);
  inner.only("weight_block_size", json::array({128, 128}), "other blocks are not read");
  inner.only("fmt", "e4m3", "other 8-bit floats are not read");
  inner.only("activation_scheme", "dynamic", "stored activation scales are not read");
  return true;
}

// Checks that involve several fields; each field alone is in range by now.
void check_together(const ModelConfig& config, ConfigProblems& problems) {
  if (config.moe_topk > config.num_router_outputs())
    problems.add("moe_topk is ", config.moe_topk,
                 ", expected at most n_routed_experts + zero_expert_num = ", config.num_router_outputs());
  const auto real = [](int64_t value) { return static_cast<double>(value); };
  double tables = 0;
  if (config.ngram) {
    const NgramConfig& ngram = *config.ngram;
    if (ngram.table_rows < 1)
      problems.add("ngram_vocab_size_ratio x vocab_size is ", ngram.table_rows, ", expected at least 1");
    if (config.hidden_size % ngram.num_tables())
      problems.add("hidden_size is ", config.hidden_size,
                   ", expected a multiple of emb_split_num x (emb_neighbor_num - 1) = ", ngram.num_tables());
    // `rows` is more than any one table has. A row number, which counts within its table, must fit in int32. The hash
    // adds N products of a token id and (power of vocab_size mod rows) in int64.
    const double rows = real(ngram.rows_of(ngram.num_tables()));
    if (rows > 0x1p31 - 1 || real(ngram.emb_neighbor_num) * real(config.vocab_size) * rows > 0x1p62)
      problems.add("vocab_size ", config.vocab_size, " with N-gram tables of ", ngram.table_rows,
                   " rows: more than the hash can number");
    tables = rows * real(config.hidden_size);
  }
  const double hidden = real(config.hidden_size), heads = real(config.num_attention_heads);
  const double attention = hidden * real(config.q_lora_rank + config.latent_dim()) +
                           heads * real(config.qk_head_dim()) * real(config.q_lora_rank) +
                           heads * real(config.qk_nope_head_dim + config.v_head_dim) * real(config.kv_lora_rank) +
                           heads * real(config.v_head_dim) * hidden;
  const double indexer = config.sparse ? real(config.sparse->index_n_heads) *
                                             (real(config.sparse->index_head_dim) * real(config.q_lora_rank) + hidden)
                                       : 0;
  const double experts = real(config.n_routed_experts) * 3 * hidden * real(config.expert_ffn_hidden_size);
  const double layer = 2 * (attention + indexer) + 6 * hidden * real(config.ffn_hidden_size) + experts +
                       hidden * real(config.num_router_outputs());
  const double total = tables + 2 * real(config.vocab_size) * hidden + real(config.num_layers) * layer;
  if (total > kMaxParameters)
    problems.add("the sizes make a model of ", total, " parameters, expected at most ", kMaxParameters);
}

}  // namespace

ModelConfig parse_model_config(std::string_view text, const std::string& where) {
  const std::string area = "[config] " + printable(where, 1024);
  const json object = parse_object(text, area);
  ConfigProblems problems;
  ConfigFields fields(object, "", problems);
  ModelConfig config;
  config.architecture = read_architecture(fields, area);
  read_sizes(fields, config);
  read_choices(fields, config);
  config.ngram = read_ngram(fields, config);
  config.sparse = read_sparse(fields, config);
  read_rope(fields, config);
  read_token_ids(fields, config);
  config.torch_dtype = read_dtype(fields);
  config.fp8_blocks = read_fp8_blocks(fields, std::filesystem::path(where).parent_path());
  if (problems.none()) check_together(config, problems);
  if (!problems.none()) throw Error(area + ": " + problems.text());
  return config;
}

ModelConfig load_model_config(const std::filesystem::path& folder) {
  require_model_folder(folder, "[config]");
  const std::filesystem::path path = folder / "config.json";
  const std::string where = "[config] " + printable_path(path);
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error)
    throw Error(where + " does not exist: expected a folder in the Hugging Face layout (config.json, *.safetensors)");
  const MappedFile file(path, where);
  return parse_model_config(file.text(), path);
}

}  // namespace longcat
