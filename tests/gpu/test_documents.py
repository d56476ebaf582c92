"""Attention within documents on a GPU: torch's flash kernel for varying lengths, and the losses of a run."""

from __future__ import annotations

import pytest
import torch

from megatron_dsmath.parallel.attention import can_use_flash, document_attention, loop_attention

pytestmark = pytest.mark.gpu
SEQUENCE, BATCH, CHANNELS = 512, 2, 64
BOUNDS = [0, 1, 200, 512, 700, 701, 1024]  # three documents in each row, single tokens among them
# bf16 has 8 bits, and the kernel rounds the weights before it multiplies; values are of order 1.
TOLERANCE = 2**-5


@pytest.mark.parametrize("groups", [8, 2])
def test_the_flash_kernel_has_the_values_and_gradients_of_fp32_on_a_cpu(groups: int) -> None:
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device here: this test is for a machine that has one")
    generator = torch.Generator().manual_seed(0)
    shapes = [(SEQUENCE, BATCH, heads, CHANNELS) for heads in (8, groups, groups)]
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    slope = torch.randn(shapes[0], generator=generator).bfloat16()
    found = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        query, key, value = states = [tensor.to(device, dtype).requires_grad_() for tensor in drawn]
        bounds = torch.tensor(BOUNDS, dtype=torch.int32, device=device)
        assert can_use_flash(query.flatten(0, 1), key.flatten(0, 1)) is (device == "cuda")
        output = document_attention(query, key, value, bounds)
        gradients = torch.autograd.grad(output, states, slope.to(device, dtype))
        found.append([tensor.float().cpu() for tensor in (output, *gradients)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)


def test_fp32_attention_per_document_equals_the_cpus() -> None:
    if not torch.cuda.is_available():
        pytest.fail("no CUDA device here: this test is for a machine that has one")
    query, key, value = torch.randn(3, 1024, 8, CHANNELS, generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    ours = loop_attention(query.cuda(), key.cuda(), value.cuda(), bounds.cuda())
    theirs = loop_attention(query, key, value, bounds)
    # The kernels sum in another order; TF32 is off by default.
    torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=0)
