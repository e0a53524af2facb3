// From a folder and options to a model that is ready for forward passes, on every rank.
#pragma once

#include <filesystem>
#include <memory>

#include "comm/device_communicator.h"
#include "engine/engine_options.h"
#include "engine/lockstep.h"
#include "model/model.h"

namespace longcat {

// The operations an engine computes with, and the communicators between their devices. Without ops,
// EngineOptions::device names them.
struct Backend {
  std::unique_ptr<Ops> ops = nullptr;
  CommunicatorFactory communicator = on_device;
};

// Everything needed to run forward passes. Members in the order of their lifetimes.
struct LoadedModel {
  ModelConfig config;
  DType dtype, kv_cache_dtype;
  Checkpoint checkpoint;
  Lockstep lockstep;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Model> model;
};

// `world`: this rank's communicator; null with one rank. Other ranks hear of a failure.
LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options,
                       const LoadProgress& progress = {}, std::unique_ptr<Communicator> world = nullptr,
                       Backend backend = {});

}  // namespace longcat
