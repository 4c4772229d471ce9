"""Mix Transformers: an independent formulation, counts, odd sizes, and the layouts of published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.encoders.mit import ENCODERS, HEADS, REDUCTION_RATIOS, MiTOptions, MixTransformer, segformer_names
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.weights.imagenet import load_encoder_weights


def build(name: str = "mit_b0", in_chans: int = 3, **options: float) -> MixTransformer:
    entry = ENCODERS[name]
    encoder = entry.build(name, in_chans, entry.options(**options))
    assert isinstance(encoder, MixTransformer)
    return encoder


def randomized(encoder: MixTransformer) -> MixTransformer:
    """All parameters random, so that biases and normalization take part."""
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return encoder


def by_equations(state: dict[str, Tensor], image: Tensor, eps: float, eps_embedding: float) -> list[Tensor]:
    """The four normalized maps, written with explicit sums over heads, keys and window positions."""

    def norm(x_BNC: Tensor, name: str, eps: float) -> Tensor:
        centered = x_BNC - x_BNC.mean(-1, keepdim=True)
        return (
            centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]
            + (state[f"{name}.bias"])
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attention(x_BNC: Tensor, name: str, heads: int, ratio: int, height: int, width: int) -> Tensor:
        source = x_BNC
        if ratio > 1:
            rows, columns = height // ratio, width // ratio
            grid = x_BNC.reshape(len(x_BNC), height, width, -1)[:, : rows * ratio, : columns * ratio]
            windows = grid.reshape(len(x_BNC), rows, ratio, columns, ratio, -1)
            source = torch.einsum("brycxi,oiyx->brco", windows, state[f"{name}.sr.weight"]).flatten(1, 2)
            source = norm(source + state[f"{name}.sr.bias"], f"{name}.norm", eps_embedding)
        queries, pairs = linear(x_BNC, f"{name}.q"), linear(source, f"{name}.kv")
        total = x_BNC.shape[-1]
        c = total // heads
        parts = []
        for head in range(heads):
            q = queries[..., head * c : (head + 1) * c]
            k = pairs[..., head * c : (head + 1) * c]
            v = pairs[..., total + head * c : total + (head + 1) * c]
            weight = torch.exp(q @ k.transpose(1, 2) / c**0.5)
            parts.append(weight / weight.sum(-1, keepdim=True) @ v)
        return linear(torch.cat(parts, -1), f"{name}.proj")

    def feed_forward(x_BNC: Tensor, name: str, height: int, width: int) -> Tensor:
        hidden = linear(x_BNC, f"{name}.fc1")
        grid = functional.pad(hidden.reshape(len(hidden), height, width, -1), (0, 0, 1, 1, 1, 1))
        kernel = state[f"{name}.dwconv.dwconv.weight"]
        mixed = sum(grid[:, y : y + height, x : x + width] * kernel[:, 0, y, x] for y in range(3) for x in range(3))
        mixed = mixed + state[f"{name}.dwconv.dwconv.bias"]
        active = 0.5 * mixed * (1 + torch.erf(mixed / 2**0.5))
        return linear(active.flatten(1, 2), f"{name}.fc2")

    features, x = [], image
    for stage in range(4):
        name, kernel, stride = f"patch_embed{stage + 1}", 3 if stage else 7, 2 if stage else 4
        weight, bias = state[f"{name}.proj.weight"], state[f"{name}.proj.bias"]
        patches = functional.unfold(x, kernel, padding=kernel // 2, stride=stride)
        tokens = patches.transpose(1, 2) @ weight.flatten(1).T + bias
        height, width = (-(-side // stride) for side in x.shape[-2:])
        tokens = norm(tokens, f"{name}.norm", eps_embedding)
        for block in range(2):
            name = f"block{stage + 1}.{block}"
            inner = norm(tokens, f"{name}.norm1", eps)
            tokens = tokens + attention(inner, f"{name}.attn", HEADS[stage], REDUCTION_RATIOS[stage], height, width)
            tokens = tokens + feed_forward(norm(tokens, f"{name}.norm2", eps), f"{name}.mlp", height, width)
        tokens = norm(tokens, f"norm{stage + 1}", eps)
        x = tokens.transpose(1, 2).reshape(len(x), -1, height, width)
        features.append(x)
    return features


@pytest.mark.parametrize("eps", [(1e-6, 1e-5), (1e-2, 1e-3)])
def test_equations(eps: tuple[float, float]) -> None:
    encoder = randomized(build(norm_eps=eps[0], embedding_norm_eps=eps[1])).double().eval()
    image = torch.randn(2, 3, 75, 98, dtype=torch.float64)  # 1/4: 19 x 25, so that the reductions leave a rest
    expected = by_equations(dict(encoder.state_dict()), image, *eps)
    for feature, reference in zip(encoder(image), expected, strict=True):
        assert feature.shape == reference.shape
        assert (feature - reference).abs().max() < 1e-9 * reference.std()


def test_stages_from_outside_give_the_features() -> None:
    encoder = randomized(build(in_chans=4)).eval()
    image = torch.randn(1, 4, 64, 96)
    state = encoder.stem(image)
    states = []
    for index in range(4):
        state = encoder.stage(index, state)
        states.append(state)
    for feature, (stepwise,) in zip(encoder(image), states, strict=True):
        assert torch.equal(feature, stepwise)
    assert tuple(f.shape[1] for f in encoder(image)) == encoder.channels


@pytest.mark.parametrize(
    ("name", "count"), [("mit_b0", 3_319_392), ("mit_b2", 24_196_288), ("mit_b4", 60_842_688), ("mit_b5", 81_443_008)]
)
def test_parameter_count(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name).parameters()) == count


def test_gradients_reach_every_parameter() -> None:
    encoder = randomized(build()).train()
    features = encoder(torch.randn(2, 3, 64, 64))
    sum((feature * torch.randn_like(feature)).sum() for feature in features).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_drop_path_rises_over_the_blocks() -> None:
    encoder = build("mit_b1", drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for index in range(4) for block in encoder.blocks(index)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    encoder.set_drop_path([0.5] * 8)
    assert {block.drop_path.drop_prob for index in range(4) for block in encoder.blocks(index)} == {0.5}
    with pytest.raises(UsageError, match="drop_path_rate"):
        MiTOptions(drop_path_rate=1.5)


def transformers_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout that the transformers library has for the same weights, word by word."""
    words = {"attn.q": "attention.self.query", "attn.proj": "attention.output.dense", "attn.sr": "attention.self.sr"}
    words |= {"attn.norm": "attention.self.layer_norm", "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2"}
    words |= {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "mlp.dwconv.dwconv": "mlp.dwconv.dwconv"}
    renamed = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        stage = int(first[-1]) - 1
        if first.startswith("norm"):
            renamed[f"segformer.encoder.layer_norm.{stage}.{rest}"] = value
        elif first.startswith("patch_embed"):
            part = rest.replace("norm.", "layer_norm.")
            renamed[f"segformer.encoder.patch_embeddings.{stage}.{part}"] = value
        else:
            block, _, inner = rest.partition(".")
            part, leaf = inner.rsplit(".", 1)
            place = f"segformer.encoder.block.{stage}.{block}"
            if part == "attn.kv":
                half = len(value) // 2
                renamed[f"{place}.attention.self.key.{leaf}"] = value[:half]
                renamed[f"{place}.attention.self.value.{leaf}"] = value[half:]
            else:
                renamed[f"{place}.{words[part]}.{leaf}"] = value
    return renamed


def test_layouts_of_published_weights() -> None:
    encoder = randomized(build("mit_b1"))
    own = dict(encoder.state_dict())
    published = transformers_layout(own) | {"classifier.weight": torch.zeros(2), "classifier.bias": torch.zeros(2)}
    assert "segformer.encoder.block.2.1.attention.self.layer_norm.bias" not in own
    segmentation = {f"backbone.{k}": v for k, v in own.items()} | {"decode_head.conv_seg.bias": torch.zeros(2)}
    dropped = (f"{encoder.classifier}.", *(f"{prefix}." for prefix in encoder.dropped))
    for layout in (published, segmentation, own):
        read = encoder.rename_weights(layout)
        fresh = build("mit_b1")
        fresh.load_state_dict({k: v for k, v in read.items() if not k.startswith(dropped)})
        assert all(torch.equal(value, own[name]) for name, value in fresh.state_dict().items())


def test_names_of_other_networks_stay() -> None:
    assert set(segformer_names({"layer1.0.weight": torch.zeros(1)})) == {"layer1.0.weight"}
    incomplete = {"segformer.encoder.block.0.0.attention.self.key.weight": torch.zeros(1)}
    assert set(segformer_names(incomplete)) == {"block1.0.attn.key.weight"}


def test_a_file_of_the_hub_starts_both_encoders_of_a_model(tmp_path: Path) -> None:
    own = dict(randomized(build()).state_dict())
    torch.save(transformers_layout(own) | {"classifier.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    model = rgbdseg.create_model("cmx_mit_b0", 5)
    reports = load_encoder_weights(model, tmp_path / "pytorch_model.bin")
    assert [(report.stream, report.dropped) for report in reports] == [(s, ("head.weight",)) for s in ("rgb", "hha")]
    for _, encoder in model.encoder_streams():
        assert all(torch.equal(value, own[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(CheckpointError, match=r"huggingface.co/nvidia/mit-b0 .*non-commercial"):
        load_encoder_weights(model, "timm")
