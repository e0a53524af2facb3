"""The packings that tests write, against the packages of their projects: compressed-tensors, AutoRound and MLX.

The packages are in no extra: pip install compressed-tensors auto-round mlx. A test of a missing one is skipped.
"""

import numpy as np
import pytest

from support import quantized_folders as q
from support.checkpoints import random_uniform

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

MATRIX = random_uniform(1, "matrix", (64, 256), 0.0, 1.0)


def tensor(dtype, bits):
    kind = {"BF16": torch.bfloat16, "F16": torch.float16}.get(dtype)
    array = torch.from_numpy(np.ascontiguousarray(bits))
    return array.view(kind) if kind else array


@pytest.mark.parametrize("bits,size,symmetric", [(4, 128, True), (4, 32, False), (8, 64, True), (8, 128, False)])
def test_compressed_tensors_integers(bits, size, symmetric):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    packed = q.ct_packed(bits, size, symmetric)(MATRIX)
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=size)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    state = {part: tensor(*stored) for part, stored in packed.tensors.items()}
    scales = state["weight_scale"].float()
    found = PackedQuantizationCompressor.decompress(state | {"weight_scale": scales}, scheme)
    assert np.array_equal(found["weight"].numpy(), packed.values)
    again = {"weight": found["weight"], "weight_scale": scales}
    if not symmetric:
        again["weight_zero_point"] = found["weight_zero_point"]
    made = PackedQuantizationCompressor.compress(again, scheme)
    for part in packed.tensors.keys() - {"weight_scale"}:
        assert torch.equal(made[part], state[part]), part


def test_compressed_tensors_mxfp4():
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import MXFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    packed = q.mxfp4()(MATRIX)
    args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32)
    state = {part: tensor(*stored) for part, stored in packed.tensors.items()}
    found = MXFP4PackedCompressor.decompress(state, QuantizationScheme(targets=["Linear"], weights=args))
    assert np.array_equal(found["weight"].float().numpy(), packed.values)


@pytest.mark.parametrize("bits,size,symmetric,added", [(4, 128, True, 1), (8, 64, True, 1), (4, 64, False, 0)])
def test_auto_round(bits, size, symmetric, added):
    pytest.importorskip("auto_round")
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    packed = q.gptq(bits, size, symmetric, added)(MATRIX)
    layer = (qlinear_torch_zp if added else qlinear_torch).QuantLinear(bits, size, 256, 64, False)
    for part, stored in packed.tensors.items():
        assert getattr(layer, part).shape == stored[1].shape, part
        setattr(layer, part, tensor(*stored))
    layer.scales = layer.scales.float()
    assert np.array_equal(layer(torch.eye(256)).numpy().T, packed.values)


def test_auto_round_in_the_packing_of_awq():
    pytest.importorskip("auto_round")
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    packed = q.awq(64)(MATRIX)
    parts = [tensor(*packed.tensors[part]) for part in ("qweight", "qzeros", "scales")]
    assert np.array_equal(dequantize_gemm(*parts[:2], parts[2].float(), 4, 64).numpy().T, packed.values)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx(bits):
    mx = pytest.importorskip("mlx.core")
    packed = q.mlx(bits, 64, "F16")(MATRIX)
    weight, scales, biases = (mx.array(np.ascontiguousarray(packed.tensors[part][1])) for part in packed.tensors)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    found = np.array(mx.dequantize(weight, scales, biases, group_size=64, bits=bits))
    assert np.array_equal(found, packed.values)


def test_mlx_mxfp4():
    mx = pytest.importorskip("mlx.core")
    packed = q.mxfp4(("weight", "scales"))(MATRIX)
    weight, scales = (mx.array(np.ascontiguousarray(packed.tensors[part][1])) for part in packed.tensors)
    found = mx.dequantize(weight, scales, None, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    assert np.array_equal(np.array(found), packed.values)
