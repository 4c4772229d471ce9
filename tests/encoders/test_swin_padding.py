"""Where a Swin Transformer pads: windows worked out pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders._windows import shifted_window_attention
from rgbdseg.errors import UsageError


def attention_by_pixels(block: Any, x_HWC: Tensor, shift: int) -> Tensor:
    """The attention of a shifted block, before any sum, with coordinates instead of rolls, windows and masks.

    A pixel of the padded map moves up and left by the shift, around the border.  It sees the pixels in the window that
    it lands in which crossed as many borders as itself.
    """
    (height, width, channels), (side, _) = x_HWC.shape, block.window_size
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded = x_HWC.new_zeros(rows, columns, channels)
    padded[:height, :width] = x_HWC
    attention = block.attn
    heads, size = attention.num_heads, channels // attention.num_heads
    qkv = (padded @ attention.qkv.weight.T + attention.qkv.bias).view(rows, columns, 3, heads, size)

    def place(y: int, x: int) -> tuple[int, int, int, int, bool, bool]:
        moved_y, moved_x = (y - shift) % rows, (x - shift) % columns
        return moved_y // side, moved_x // side, moved_y % side, moved_x % side, y < shift, x < shift

    output = torch.empty_like(x_HWC)
    for y in range(height):
        for x in range(width):
            window_y, window_x, own_y, own_x, *crossed = place(y, x)
            seen = []
            for other_y in range(rows):
                for other_x in range(columns):
                    place_y, place_x, in_y, in_x, *also_crossed = place(other_y, other_x)
                    if (place_y, place_x) == (window_y, window_x) and (shift == 0 or also_crossed == crossed):
                        row = (own_y - in_y + side - 1) * (2 * side - 1) + own_x - in_x + side - 1
                        bias = attention.relative_position_bias_table[row]
                        score = (qkv[y, x, 0] * qkv[other_y, other_x, 1]).sum(-1) / size**0.5 + bias
                        seen.append((score, qkv[other_y, other_x, 2]))
            weights = torch.stack([score for score, _ in seen]).softmax(0)
            mixed = (weights[..., None] * torch.stack([value for _, value in seen])).sum(0).flatten()
            output[y, x] = attention.proj.weight @ mixed + attention.proj.bias
    return output


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [(3, 4), (8, 5), (7, 14)])
def test_padding_before_the_shift(index: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder: Any = create_encoder("swin_tiny_patch4_window7_224", padding="before_shift").eval().double()
    block = encoder.layers[0].blocks[index]
    for parameter in block.attn.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_BHWC = torch.randn(1, *size, 96, dtype=torch.float64)
    with torch.no_grad():
        attended = shifted_window_attention(block, x_BHWC, shifted=index == 1)
        torch.testing.assert_close(attended[0], attention_by_pixels(block, x_BHWC[0], 3 * index))


def test_the_order_matters_only_where_windows_do_not_divide_the_map() -> None:
    torch.manual_seed(0)
    before = create_encoder("swin_tiny_patch4_window7_224", padding="before_shift").eval()
    after = create_encoder("swin_tiny_patch4_window7_224").eval()
    after.load_state_dict(before.state_dict())
    image = torch.randn(1, 3, 224, 224)
    for one, other in zip(before(image), after(image), strict=True):
        torch.testing.assert_close(one, other)
    image = torch.randn(1, 3, 96, 128)
    assert not torch.allclose(before(image)[0], after(image)[0], atol=1e-3)


def test_only_the_first_version_pads_before_the_shift() -> None:
    with pytest.raises(UsageError, match=r"swinv2_tiny_window8_256.*after_shift"):
        create_encoder("swinv2_tiny_window8_256", padding="before_shift")
