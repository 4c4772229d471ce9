"""Statistics over processes, here over a group of one, whose result the plain layers give as well."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rgbdseg.encoders._registry import create_encoder
from rgbdseg.engine.sync_batch_norm import synchronize_batch_norm
from rgbdseg.errors import UsageError

# One small member of each family.
ENCODERS = (
    "test_resnet", "resnet18", "test_efficientnet", "efficientnet_lite0", "mobilenetv3_small_050", "efficientvit_b0",
    "hrnet_w18_small", "convnext_atto", "pvt_v2_b0", "vgg11_bn",
)  # fmt: skip


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("process_group")
def test_one_process_equals_the_plain_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (3 * torch.randn(4, 5, 7, 9) + 2).to(dtype)
    plain, portable = nn.Sequential(nn.BatchNorm2d(5)), nn.Sequential(nn.BatchNorm2d(5))
    synchronize_batch_norm(portable, cpu=True)
    inputs = [values.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(input) for layer, input in zip((plain, portable), inputs, strict=True)]
    assert outputs[1].dtype == dtype
    for output in outputs:
        output.float().square().sin().sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(outputs[1], outputs[0], **tolerance)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **tolerance)
    # The running statistics stay float32 and exact: 252 values are too many to be counted and summed in bfloat16.
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(portable.state_dict()[f"0.{name}"], plain.state_dict()[f"0.{name}"])


@pytest.mark.usefixtures("process_group")
def test_statistics_of_values_far_from_zero_keep_their_digits() -> None:
    values = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1000
    layer = nn.Sequential(nn.BatchNorm2d(3))
    synchronize_batch_norm(layer, cpu=True)
    found = layer(values)
    expected = nn.functional.batch_norm(values.double(), None, None, training=True).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 7)),
        (nn.BatchNorm2d(3, affine=False), (5, 3, 7, 2)),
        (nn.BatchNorm2d(3, momentum=None), (5, 3, 7, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False), (5, 3, 7, 2)),
        (nn.BatchNorm3d(3), (2, 3, 4, 5, 6)),
        (BatchNormAct2d(3, act_layer=nn.SiLU), (5, 3, 7, 2)),
    ],
    ids=lambda value: str(value).split("(", maxsplit=1)[0],
)
@pytest.mark.usefixtures("process_group")
def test_every_kind_equals_the_plain_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    plain, portable = (nn.Sequential(copy.deepcopy(layer)).double() for _ in range(2))
    synchronize_batch_norm(portable, cpu=True)
    assert type(portable[0]) is not type(plain[0])
    for step in range(3):
        values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) * 2 + 1
        torch.testing.assert_close(portable(values), plain(values))
    torch.testing.assert_close(portable.state_dict(), plain.state_dict())
    torch.testing.assert_close(portable.eval()(values), plain.eval()(values))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.usefixtures("process_group")
def test_no_encoder_changes(name: str) -> None:
    """Statistics over one process are the plain ones, in training and evaluation; names stay what they were."""
    torch.manual_seed(0)
    plain = create_encoder(name).double().train()
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    portable, cuda = copy.deepcopy(plain), copy.deepcopy(plain)
    synchronize_batch_norm(portable, cpu=True)
    synchronize_batch_norm(cuda, cpu=False)

    def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
        for first, second in zip(one, other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)

    features = []
    for model in (plain, portable):
        torch.manual_seed(1)  # of dropout
        features.append(model(image))
    assert_same(*features)
    assert portable.state_dict().keys() == cuda.state_dict().keys() == plain.state_dict().keys()
    # In evaluation, PyTorch's own layer for GPUs works on the CPU, too.
    cuda.load_state_dict(plain.state_dict())
    evaluated = plain.eval()(image)
    assert_same(portable.eval()(image), evaluated)
    assert_same(cuda.eval()(image), evaluated)
    assert all(isinstance(m, nn.SyncBatchNorm) for m in cuda.modules() if isinstance(m, _BatchNorm))


def test_activation_and_dropout_of_a_layer_stay() -> None:
    values = torch.linspace(-2, 2, 64).reshape(2, 2, 4, 4)
    for cpu in (True, False):
        layer = nn.Sequential(BatchNormAct2d(2, act_layer=nn.ReLU, drop_layer=nn.Hardswish)).eval()
        expected = layer(values)
        synchronize_batch_norm(layer, cpu=cpu)
        assert torch.equal(layer(values), expected)
        assert float(expected.detach().min()) >= 0


def test_a_layer_used_twice_stays_one() -> None:
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    for cpu in (True, False):
        twice = copy.deepcopy(model)
        synchronize_batch_norm(twice, cpu=cpu)
        assert twice[0] is twice[2]


@pytest.mark.parametrize("cpu", [True, False])
def test_an_unknown_kind_is_refused_by_name(cpu: bool) -> None:
    class ClippedNorm(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).clamp(-1, 1)

    model = nn.ModuleDict({"first": nn.BatchNorm2d(2), "second": nn.Sequential(ClippedNorm(2))})
    with pytest.raises(UsageError, match=r"ClippedNorm \('second.0'\) cannot be taken over several devices"):
        synchronize_batch_norm(model, cpu=cpu)
    assert type(model["first"]) is nn.BatchNorm2d  # nothing is half done
