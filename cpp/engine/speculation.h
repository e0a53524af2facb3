// Speculative decoding: draft tokens by prompt lookup, or by the checkpoint's MTP layer.
#pragma once

#include <cstdint>

#include "engine/prompt_lookup.h"

namespace longcat {

struct Speculation {
  enum class Method : uint8_t { none, prompt_lookup, mtp } method = Method::none;
  int64_t num_tokens = 0;  // most draft tokens of a sequence in a step; 0: no speculative decoding
  PromptLookup lookup = {};
  // Of the MTP layer:
  bool adaptive = true;     // make fewer draft tokens, or none, where they do not pay (DraftPolicy)
  int64_t draft_vocab = 0;  // draft tokens are among the first ids: this many, in whole blocks of 128; 0: all ids

  bool by_mtp() const { return method == Method::mtp; }
  int64_t most_in_a_step() const {
    return 4 * num_tokens;
  }  // most draft tokens of all sequences in a step: many sequences fill a step without draft tokens
};

}  // namespace longcat
