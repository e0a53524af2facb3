"""How close results must be, each with its reason. Differences are relative to the largest value of a row."""

# f32 arithmetic against float64: 2^-24 a rounding, sums of up to a few thousand products in 64 partial sums.
F32_ROW = 5e-6

# exp, cos and sin of the f32 C library, a few units in the last place, amplified by products.
F32_TRANSCENDENTAL = 2e-5

# Latents stored in bf16: 8 significant bits, half a unit in the last place is 2^-9.
BF16_STORE = 2.0**-8

# Latents stored in e4m3: 4 significant bits, half a unit in the last place is 2^-4; the group's scale is exact enough.
FP8_STORE = 2.0**-4

# Latents stored in 8 bits: half a step of 1 / 127 of the largest value.
INT8_STORE = 0.5 / 127 + 1e-6

# Attention over int8 latents as they are stored. Queries have 14 bits: half a step of 2^-13 of the largest, summed over
# the width and turned into exponents. Weights have 15.
INT8_ATTENTION = 2e-3

# Attention in bf16 against the same with queries, keys and values rounded. What is left: each weight is half a unit of
# 2^-9 off, and another order of sums rounds some keys and values the other way.
BF16_ATTENTION = 8e-3

# Nats a token that int8 latents may change, on average over a few hundred tokens (0.0001 was seen over 17,000).
INT8_LATENT_NATS = 2e-3

# Logits of a whole small f32 model against transformers in f32 where the picked experts agree.
LOGITS = 1e-4

# Router scores closer than this may be ordered differently by two correct f32 programs.
ROUTER_GAP = 1e-5

# One op on bf16 activations, relative to a row's largest value: a few roundings of 2^-9 each.
BF16_OPS = 2e-2

# One op whose inputs are rounded to e4m3 (half a unit is 2^-4 of a value at worst), against the same in f32.
FP8_OPS = 6e-2

# Logits of a small model with bf16 activations: a few dozen roundings of 2^-9 in a row.
BF16_MODEL = 4e-2

# Logits of a small model whose weights are rounded to e4m3, and for prompt tokens also inputs. A dozen roundings of up
# to 2^-4 follow each other. Each is averaged over a sum of a hundred products and more.
FP8_MODEL = 1.2e-1

# Logits of a small packed model with bf16 activations, against kernels that take inputs in 8 bits. Besides the above,
# half a step of 1 / 127 of the largest of 32 inputs, in each of a few dozen products.
INT8_INPUT_MODEL = 8e-2
