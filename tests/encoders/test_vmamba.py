"""VMamba: counts, odd sizes, merging, and the layouts of published weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rgbdseg.encoders import create_encoder
from rgbdseg.encoders.vmamba import PatchMerging, VMamba, current_name, released_name
from rgbdseg.errors import UsageError


def build(name: str = "vmamba_nano", **options: object) -> VMamba:
    torch.manual_seed(0)
    encoder = create_encoder(name, **options)
    assert isinstance(encoder, VMamba)
    return encoder


@pytest.mark.parametrize(
    ("name", "count"), [("vmamba_tiny", 22_125_792), ("vmamba_small", 43_649_760), ("vmamba_base", 75_230_848)]
)
def test_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name).parameters()) == count


def test_merging_joins_the_rows_of_a_column_first() -> None:
    merging = PatchMerging(1)
    merging.norm = nn.Identity()  # type: ignore[assignment]
    merging.reduce = nn.Identity()  # type: ignore[assignment]
    x = torch.arange(15.0).view(1, 3, 5, 1)
    expected = torch.tensor(
        [[[0, 5, 1, 6], [2, 7, 3, 8], [4, 9, 0, 0]], [[10, 0, 11, 0], [12, 0, 13, 0], [14, 0, 0, 0]]]
    )
    assert torch.equal(merging(x)[0], expected.float())


@pytest.mark.parametrize("size", [(64, 96), (72, 44), (61, 35)])
def test_sizes_are_rounded_up(size: tuple[int, int]) -> None:
    features = build()(torch.randn(1, 3, *size))
    for feature, channels, reduction in zip(features, (24, 48, 96, 192), (4, 8, 16, 32), strict=True):
        assert feature.shape == (1, channels, *(-(-side // reduction) for side in size))


def test_the_last_rows_are_seen_only_if_asked_for() -> None:
    image = torch.randn(1, 3, 34, 34)
    changed = image.clone()
    changed[..., 32:, :] += 1
    for whole in (True, False):
        encoder = build(whole_patches=whole).eval()
        assert torch.equal(encoder(image)[0], encoder(changed)[0]) is not whole


def test_stage_by_stage_and_normalized() -> None:
    encoder = build().eval()
    features = encoder(torch.randn(1, 3, 64, 64))
    state = encoder.stem(torch.randn(1, 3, 64, 64))
    assert state[0].shape == (1, 24, 16, 16)
    for feature in features:
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), atol=1e-5, rtol=0)


def published(encoder: VMamba, older: bool) -> dict[str, Tensor]:
    """ImageNet weights of the same network, by the names of the later or the first files."""
    state = {released_name(k): torch.randn_like(v) for k, v in encoder.state_dict().items() if "output_norms" not in k}
    state["classifier.head.weight" if not older else "head.weight"] = torch.randn(1000, 192)
    state["classifier.norm.weight" if not older else "norm.weight"] = torch.randn(192)
    if not older:
        return state
    olds = {"patch_embed.0.": "patch_embed.proj.", "patch_embed.2.": "patch_embed.norm.", ".op.": ".self_attention."}
    renamed = {}
    for name, value in state.items():
        for new, old in olds.items():
            name = name.replace(new, old)  # noqa: PLW2901
        if ".blocks." in name and ".self_attention." not in name:
            name = name.replace(".norm.", ".ln_1.")  # noqa: PLW2901
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("older", [False, True])
def test_published_weights(older: bool) -> None:
    encoder = build()
    state = published(encoder, older)
    if older:
        assert "layers.2.blocks.1.ln_1.weight" in state
        assert "layers.0.blocks.0.self_attention.A_logs" in state
    renamed = encoder.rename_weights(state)
    dropped = {name for name in renamed if name.startswith("classifier.")}
    assert len(dropped) == 2
    encoder.load_state_dict({name: value for name, value in renamed.items() if name not in dropped})
    taken = {released_name(name): value for name, value in encoder.state_dict().items()}
    for name, value in state.items():
        if current_name(name) in taken:
            assert torch.equal(taken[current_name(name)], value)
    assert torch.equal(encoder.state_dict()["output_norms.1.weight"], torch.ones(48))


def test_names() -> None:
    assert released_name("stages.2.8.scan.scan.log_rate") == "layers.2.blocks.8.op.A_logs"
    assert released_name("stages.0.1.scan.norm.bias") == "layers.0.blocks.1.op.out_norm.bias"
    assert released_name("stages.0.1.norm.bias") == "layers.0.blocks.1.norm.bias"
    assert released_name("merging.1.reduce.weight") == "layers.1.downsample.reduction.weight"


def test_drop_path_rises_to_the_last_block() -> None:
    encoder = build(drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for stage in encoder.stages for block in stage]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with pytest.raises(UsageError, match="drop_path_rate is 1"):
        build(drop_path_rate=1.5)
