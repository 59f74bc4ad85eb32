"""Maps on a torus: against torch's convolutions and Fourier transform, and counted positions."""

import contextlib
import itertools

import pytest
import torch
from torch import nn

from models.lipschitz import torus
from models.lipschitz.operators import NoBoundError
from models.networks.parts import Residual
from models.networks.skips import InputSkips, halving


def test_a_torus_has_room_for_the_padding_at_every_stride() -> None:
    steps = nn.Sequential(nn.Conv2d(1, 2, 3, (2, 1), 1), nn.Conv2d(2, 2, (3, 5), (1, 3), (1, 2)))
    # Maps of 9 rows become 5, so rows are a multiple of 2 with room for 2 more of the last maps.
    assert torus.torus_for(steps, (9, 6)) == (2 * (5 + 2), 3 * (2 + 2))
    assert torus.torus_for(nn.Conv2d(1, 1, 3), (8, 7)) == (9, 8)
    pooled = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AvgPool2d((2, 3)), nn.Flatten())
    assert torus.torus_for(pooled, (4, 6)) == (5, 7), "the last pool is a mean over whole maps"
    block = Residual(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(2)), halving((8, 8)))
    assert torus.torus_for(nn.Sequential(block), (8, 6)) == (2 * (4 + 1), 2 * (3 + 1))
    skips = InputSkips([nn.Conv2d(1, 1, 4, 2, 1)], [halving((8, 8))], [nn.Conv2d(1, 1, 1)])
    assert torus.torus_for(skips, (8, 6)) == (2 * (4 + 1), 2 * (3 + 1))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_windows_may_not_reach_around_the_torus(stride: int, dilation: int) -> None:
    """A position beside the image must not be one of the image, when it is counted around."""
    for size, taps, padding in itertools.product((4, 5), (1, 2, 3), (0, 1, 2)):
        layer = nn.Conv2d(1, 1, taps, stride, padding, dilation)
        reach = dilation * (taps - 1)
        if size + 2 * padding <= reach:
            continue
        made = layer(torch.zeros(1, 1, size, size)).shape[-1]
        read = [p * stride + dilation * t - padding for p in range(made) for t in range(taps)]
        for around in range(size, 13):
            fits = around % stride == 0 and all(
                position == position % around or position % around >= size for position in read
            )
            with contextlib.nullcontext() if fits else pytest.raises(NoBoundError, match="around"):
                assert torus.after(layer, (size, size), (around, around)) == (made, made)


@pytest.mark.parametrize("options", [{"padding_mode": "circular"}, {"padding": "same"}])
def test_other_paddings_than_of_zeros_by_number_have_no_symbol(options: dict[str, str]) -> None:
    layer = nn.Conv2d(1, 1, 3, **options)  # type: ignore[arg-type]
    with pytest.raises(NoBoundError, match="no symbol is known for padding mode"):
        torus.after(layer, (4, 4), (12, 12))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_symbol_is_what_a_convolution_does_to_a_wave(groups: int) -> None:
    torch.manual_seed(0)
    size = (6, 5)
    layer = nn.Conv2d(2, 4, (2, 3), padding=(1, 0), dilation=(2, 1), groups=groups, bias=False)
    layer.double()
    found = torus.symbol_of(layer, size)
    assert found.shape == (30, 4, 2)
    maps = torch.randn(1, 2, *size, dtype=torch.float64)
    around = torch.cat([maps] * 3, 2)  # far from the borders it is as on the torus
    around = torch.cat([around] * 3, 3)
    there = layer(around)
    part = there[0, :, 6:12, 5:10]
    waves = torch.fft.fft2(maps[0]).flatten(1).T[:, :, None]
    expected = torch.fft.fft2(part).flatten(1).T
    torch.testing.assert_close((found @ waves)[:, :, 0], expected)


@pytest.mark.parametrize("stride", [(2, 1), (1, 3), (2, 3)])
def test_maps_of_each_stride_th_position_have_the_kernel_s_part(stride: tuple[int, int]) -> None:
    torch.manual_seed(0)
    size = (4, 9)
    kernel = torch.randn(*size, 2, 2, dtype=torch.complex128)
    whole = torch.fft.fft2(kernel, dim=(0, 1)).flatten(0, 1)
    expected = torch.fft.fft2(kernel[:: stride[0], :: stride[1]], dim=(0, 1)).flatten(0, 1)
    torch.testing.assert_close(torus.subsampled(whole, size, stride), expected)


@pytest.mark.parametrize(
    ("pool", "size", "is_whole"),
    [
        (nn.AvgPool2d(2), (4, 6), True),
        (nn.AvgPool2d((2, 3)), (4, 6), True),
        (nn.AvgPool2d((2, 3)), (6, 4), False),
        (nn.AvgPool2d(2), (4, 5), False),
        (nn.AvgPool2d(2), (5, 4), False),
        (nn.AvgPool2d(2, stride=1), (4, 4), False),
        (nn.AvgPool2d(2, padding=1), (4, 4), False),
        (nn.AvgPool2d(2, padding=(0, 1)), (4, 4), False),
    ],
    ids=str,
)
def test_windows_that_fill_the_maps_and_share_nothing(
    pool: nn.AvgPool2d, size: tuple[int, int], is_whole: bool
) -> None:
    assert torus.is_whole(pool, size) == is_whole
