"""Checkpoints of other projects, by name: their packing, their configuration, and what becomes of them."""

from support import quantized_folders as q


def auto_round(bits=4, size=128, **more):
    fields = {"bits": bits, "group_size": size, "sym": True, "packing_format": "auto_round:auto_gptq"}
    return {"quantization_config": {"quant_method": "auto-round", "data_type": "int", **fields, **more}}


def gptq(bits=4, size=128, **more):
    return {"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": True, **more}}


def compressed(form, bits, size=None, **more):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "group_size": size, "dynamic": False}
    weights |= {"strategy": "group" if size else "channel", **more}
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    ignore = ["lm_head", r"re:.*\.router\.classifier$", "re:.*post_projs.*"]
    fields = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return {"quantization_config": {**fields, "ignore": ignore, "sparsity_config": {}, "transform_config": {}}}


def mlx(bits, size, **more):
    fields = {"bits": bits, "group_size": size, "mode": "affine", **more}
    return {"quantization": fields, "quantization_config": fields}


def fp8(**more):
    return {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "ignored_layers": ["lm_head"], **more}}


def also_head_and_embeddings(name):
    return q.is_linear(name) or "lm_head" in name or "embed" in name or "classifier" in name or "post_projs" in name


MLX = {"rename": q.mlx_names, "choose": also_head_and_embeddings}
# name -> (packing, fields of config.json, format of a matrix of an expert, how it is written)
CASES = {
    "AutoRound g128": (q.gptq(), auto_round(), "int4_x8_f16", {}),
    "AutoRound g32": (q.gptq(size=32), auto_round(size=32), "int4_x8_f16", {}),
    "AutoRound rows": (q.gptq(size=-1), auto_round(size=-1), "int4_x8_f16", {}),
    "AutoRound int8": (q.gptq(8, 64), auto_round(8, 64), "int8_x8_f16", {}),
    "AutoRound zero points": (
        q.awq(size=64),
        auto_round(size=64, sym=False, packing_format="auto_round:auto_awq"),
        "int8_x8_f16",
        {},
    ),
    "GPTQ zero points": (q.gptq(symmetric=False), gptq(sym=False), "int8_x8_f16", {}),
    "GPTQ version 2": (
        q.gptq(added=0, g_idx="plain"),
        gptq(checkpoint_format="gptq_v2", desc_act=False),
        "int4_x8_f16",
        {},
    ),
    "GPTQ desc_act": (q.gptq(size=64, g_idx="mixed"), gptq(size=64, desc_act=True), "int8_x8", {}),
    "GPTQ int8 zero points": (q.gptq(8, symmetric=False), gptq(8, sym=False), "int8_x8", {}),
    "compressed-tensors int4": (q.ct_packed(), compressed("pack-quantized", 4, 128), "int4_x8", {}),
    "compressed-tensors int4 zero points": (
        q.ct_packed(size=32, symmetric=False),
        compressed("pack-quantized", 4, 32, symmetric=False),
        "int8_x8",
        {},
    ),
    "compressed-tensors int4 unpacked zero points": (
        q.ct_packed(symmetric=False, zero="I8", dtype="F16"),
        compressed("pack-quantized", 4, 128, symmetric=False),
        "int8_x8_f16",
        {},
    ),
    "compressed-tensors int8": (q.ct_packed(8, -1), compressed("pack-quantized", 8), "int8_x8", {}),
    "compressed-tensors w8a8": (q.ct_int8(), compressed("int-quantized", 8), "int8_x8", {}),
    "compressed-tensors w8a8 F32": (q.ct_int8("F32"), compressed("int-quantized", 8), "int8_x8", {}),
    "compressed-tensors MXFP4": (q.mxfp4(), compressed("mxfp4-pack-quantized", 4, 32, type="float"), "int8_x8", {}),
    "compressed-tensors FP8": (q.fp8(), compressed("float-quantized", 8, type="float"), "int8_x8", {}),
    "compressed-tensors FP8 blocks": (
        q.fp8(block=(128, 128)),
        compressed("float-quantized", 8, type="float", strategy="block", block_structure=[128, 128]),
        "int8_x8",
        {},
    ),
    "compressed-tensors FP8 matrices": (
        q.fp8(per="matrix"),
        compressed("naive-quantized", 8, type="float", strategy="tensor"),
        "int8_x8",
        {},
    ),
    "FP8 blocks of 64": (
        q.fp8((64, 64), "weight_scale_inv", "F32"),
        fp8(weight_block_size=[64, 64]),
        "int8_x8",
        {"mtp": True},
    ),
    "FP8 stacks": (
        q.fp8((128, 128), "weight_scale_inv", "F32"),
        fp8(weight_block_size=[128, 128]),
        "int8_x8",
        {"rename": q.fused_names},
    ),
    "bf16 stacks": (lambda name: None, {}, "BF16", {"by_name": True, "rename": q.fused_names, "mtp": True}),
    "MLX 4 bits": (q.mlx(4, 32), mlx(4, 32), "int8_x8", MLX),
    "MLX 4 bits on a grid": (q.mlx(4, 64, exact=True), mlx(4, 64), "int4_x8", {"rename": q.mlx_names}),
    "MLX 6 bits": (q.mlx(6, 32, "F16"), mlx(6, 32), "int8_x8", MLX),
    "MLX 6 bits on a grid": (q.mlx(6, 64, "F16", exact=True), mlx(6, 64), "int8_x8_f16", {"rename": q.mlx_names}),
    "MLX 8 bits": (q.mlx(8, 32), mlx(8, 32), "int8_x8", MLX),
    "MLX 8 bits on a grid": (
        q.mlx(8, 128, exact=True),
        mlx(8, 128),
        "int8_x8",
        {"rename": q.mlx_names, "choose": q.is_wide},
    ),
    "MLX MXFP4": (q.mxfp4(("weight", "scales")), mlx(4, 32, mode="mxfp4"), "int8_x8", {"rename": q.mlx_names}),
}
ROUNDED = {
    *(
        "GPTQ desc_act",
        "GPTQ int8 zero points",
        "compressed-tensors w8a8 F32",
        "MLX 4 bits",
        "MLX 6 bits",
        "MLX 8 bits",
    ),
    *(name for name in CASES if "FP8" in name and "MXFP4" not in name),
}
