"""The registration of cuda/kernels/mla_decode.h for the mutation proof (prove.py)."""

KERNELS = [
    "longcat::gpu::MlaDecode<longcat::DType::bf16, 32>",
    "longcat::gpu::MlaDecode<longcat::DType::f8_e4m3, 16>",
]
SOURCES = ["cuda/kernels/mla_decode.h"]

MUTATIONS = {}
