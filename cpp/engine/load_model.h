// Loads a checkpoint folder into a model that is ready for forward passes, on every rank.
#pragma once

#include <filesystem>
#include <memory>

#include "comm/device_communicator.h"
#include "engine/engine_options.h"
#include "engine/lockstep.h"
#include "model/model.h"

namespace longcat {

// The operations that an engine computes with, and the communicators between the devices of ranks. Null ops: those of
// EngineOptions::device.
struct Backend {
  std::unique_ptr<Ops> ops = nullptr;
  CommunicatorFactory communicator = on_device;
};

// Everything needed to run forward passes. Members in the order of their lifetimes.
struct LoadedModel {
  ModelConfig config;
  DType dtype, kv_cache_dtype, index_cache_dtype;
  Checkpoint checkpoint;
  Lockstep lockstep;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Model> model;
};

// Throws std::invalid_argument for an option that is wrong for every checkpoint.
void check(const EngineOptions& options);

// Of f32 and f16 weights, of the latent cache, and of its index keys.
struct NumberFormats {
  DType dtype, kv_cache_dtype, index_cache_dtype;
};

// Throws std::invalid_argument for a name that is not known, and for a format of index keys where attention is dense.
NumberFormats number_formats(const EngineOptions& options, const ModelConfig& config);

// world: the communicator of this rank; null: there is one rank. A failure here fails the other ranks, too.
LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options,
                       const LoadProgress& progress = {}, std::unique_ptr<Communicator> world = nullptr,
                       Backend backend = {});

}  // namespace longcat
