"""Folders in the Hugging Face layout with quantised weights: AutoRound, GPTQ, compressed-tensors, MLX and FP8."""
