// One function per kernel instance, each in its own .cu file, because CUTLASS takes 30 to 60 s per file.
#pragma once

#include "cuda/gemm/gemm.h"

namespace longcat {

using DenseGemm = void(const GemmProblem& problem, GpuDevice& device, const Buffer& workspace);
using GroupedGemm = void(const GroupedProblem& problem, const GroupedWeights& weights, GpuDevice& device,
                         const Buffer& workspace);
using GateUpGemm = void(const GroupedProblem& problem, const GroupedWeights& gates, const GroupedWeights& ups,
                        GpuDevice& device, const Buffer& workspace);

// sm_90a; the number is the tokens per tile.
DenseGemm dense_bf16_sm90_16, dense_bf16_sm90_64, dense_bf16_sm90_128;
DenseGemm dense_f32_sm90_16, dense_f32_sm90_64, dense_f32_sm90_128;  // f32 output: the logits
GroupedGemm grouped_bf16_sm90_16, grouped_bf16_sm90_64, grouped_bf16_sm90_128;
GroupedGemm grouped_fp8_sm90;  // 128 tokens per tile
GateUpGemm gate_up_bf16_sm90_16, gate_up_bf16_sm90_64, gate_up_bf16_sm90_128;

// sm_80; 128 tokens per tile.
DenseGemm dense_bf16_sm80, dense_f32_sm80;
GroupedGemm grouped_bf16_sm80;

}  // namespace longcat
