"""The CPU kernels give the same bits on every instruction set of this machine.

Those of avx_vnni run as machine code everywhere: its instructions are emulated where the processor lacks them.
"""

from longcat import _core
from longcat import _testing as testing


def test_kernels_give_the_same_bits():
    rows = testing.compare_instruction_sets()
    for name, reference, kernel, values, differences in rows:
        assert values > 100 and differences == 0, f"{kernel} of {name} differs from that of {reference}"
    kernels = {kernel for _, _, kernel, _, _ in rows}
    assert {"packed bf16", "packed int8", "packed int4", "inputs in 8 bits"} <= kernels or not rows
    assert rows or _core.cpu_isa() == "portable"
    if "avx2" in {name for name, *_ in rows}:
        assert {"packed int8", "packed int4", "index scores of integers"} <= {
            row[2] for row in rows if row[0] == "avx_vnni"
        }
