"""DPLNet: published numbers, what is frozen, the prompts by their equations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rgbdseg
from rgbdseg.config.train import OptimizerConfig
from rgbdseg.engine.memory import activation_bytes
from rgbdseg.engine.optimizers import make_optimizer, parameter_groups
from rgbdseg.errors import UsageError
from rgbdseg.models.dplnet import DPLNet, PromptAttention
from rgbdseg.weights.published import load_published
from tests.models.golden import assert_close, golden_weights
from tests.models.golden_streams import count, load_case

STREAMS = {"rgb": "rgb", "depth": "depth"}


def small(**options: object) -> DPLNet:
    torch.manual_seed(0)
    model = rgbdseg.create_model("dplnet_mit_b0", 5, **options)
    assert isinstance(model, DPLNet)
    return model


def images(height: int = 64, width: int = 96) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, 3, height, width, generator=generator) for name in STREAMS}


def test_golden() -> None:
    golden = load_case("dplnet_mit_b5", "dplnet_mit_b5", STREAMS)
    assert isinstance(golden.model, DPLNet)
    prompts: list[Tensor] = []
    for stage in golden.model.stages:
        stage.get_submodule("generate").register_forward_hook(lambda _, __, prompt: prompts.append(prompt))
    logits = golden.assert_logits()
    assert logits.shape == (2, 41, 64, 96)
    golden.assert_round_trip(without="rgb.head.")
    with torch.no_grad():
        for index, feature in enumerate(golden.model.encode(golden.images)):
            assert_close(feature[:1].mean((2, 3)), golden.outputs[f"stage{index + 1}_channel_mean"], 1e-3)
            assert_close(prompts[index][:1].mean(1), golden.outputs[f"prompt_stage{index + 1}_channel_mean"], 1e-3)


def test_golden_in_double_precision() -> None:
    load_case("dplnet_mit_b5", "dplnet_mit_b5", STREAMS, torch.float64).assert_logits()


def test_published_weights_without_the_unlabeled_channel() -> None:
    golden = load_case("dplnet_mit_b5", "dplnet_mit_b5", STREAMS)
    model = rgbdseg.create_model("dplnet_mit_b5", 40, unlabeled_channel=True)
    load_published(model, golden_weights("dplnet_mit_b5"))
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(golden.images).logits, golden.run()[:, 1:])


def test_counts() -> None:
    with torch.device("meta"):
        model = rgbdseg.create_model("dplnet_mit_b5", 41)
    assert sum(p.numel() for p in model.parameters()) == 91_854_965 - 3_265_686  # without the decoder that is not used
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_146_271
    for channels, heads, expected in ((64, 1, 4_870), (128, 2, 10_700), (320, 5, 34_334), (512, 8, 67_184)):
        assert sum(p.numel() for p in PromptAttention(channels, heads).parameters()) == expected
    assert count("dplnet_mit_b5", 40, unlabeled_channel=True) == 91_854_965 - 3_265_686


def test_only_prompts_and_decoder_learn() -> None:
    model = small().train()
    config = OptimizerConfig(name="sgd", learning_rate=0.04, weight_decay=5e-4, weight_decay_on="all")
    learned = {id(p) for group in parameter_groups(model, config) for p in group["params"]}  # type: ignore[attr-defined]
    assert learned == {id(p) for name, p in model.named_parameters() if not name.startswith("encoder.")}
    optimizer = make_optimizer(model, config)
    before = copy.deepcopy(model.state_dict())
    logits = model(images()).logits
    (logits * torch.randn_like(logits)).sum().backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if name.startswith("encoder.") and p.grad is not None] == []
    unchanged = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert unchanged == {name for name, _ in model.encoder.named_parameters(prefix="encoder")}


def test_a_frozen_encoder_keeps_less_for_backward() -> None:
    # Of two images of 480x640: without gradients of its weights, the inputs of its linear layers are not kept.
    frozen, learned = (activation_bytes(on_meta(freeze_encoder=freeze), 2, (480, 640)) for freeze in (True, False))
    assert frozen < 0.8 * learned
    tensors = [p.nbytes for p in on_meta().parameters() if p.requires_grad]
    assert sum(tensors) < 0.1 * sum(p.nbytes for p in on_meta().parameters())


def on_meta(**options: object) -> DPLNet:
    with torch.device("meta"):
        model = rgbdseg.create_model("dplnet_mit_b5", 40, **options)
    assert isinstance(model, DPLNet)
    return model


def test_unfrozen_encoder() -> None:
    model = small(freeze_encoder=False).train()
    logits = model(images()).logits
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_without_prompts_it_is_the_plain_encoder() -> None:
    model = small().eval()
    nn.init.normal_(model.prompts)
    for name, parameter in model.named_parameters():
        if ".restore." in name or ".project." in name:
            nn.init.zeros_(parameter)
    rgb = images()["rgb"]
    for feature, plain in zip(model.encode(images()), model.encoder(rgb), strict=True):
        torch.testing.assert_close(feature, plain)


def test_prompt_attention_equals_the_equations() -> None:
    torch.manual_seed(0)
    attention = PromptAttention(128, 2).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    prompts = torch.randn(1, 30, 32, dtype=torch.float64)
    queries = torch.randn(2, 7, 128, dtype=torch.float64)
    p = {name: value.detach() for name, value in attention.named_parameters()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    centered = prompts[0] - prompts[0].mean(1, keepdim=True)
    normalized = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    lifted = linear(normalized * p["norm.weight"] + p["norm.bias"], "lift")
    query, key, value = linear(queries, "query"), linear(lifted[:, :128], "key"), linear(lifted[:, 128:], "value")
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        weight = torch.exp(query[..., head] @ key[:, head].T / 8)  # as heads of 64 channels have it, not of 2
        heads.append(weight / weight.sum(-1, keepdim=True) @ value[:, head])
    torch.testing.assert_close(attention(queries, prompts), linear(torch.cat(heads, -1), "project"))


def test_the_prompt_is_what_the_next_embedding_of_depth_reads() -> None:
    model = small().eval()
    read: list[Tensor] = []
    given: list[Tensor] = []
    model.stages[1].get_submodule("embed").register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model.stages[0].get_submodule("generate").register_forward_hook(lambda _, __, prompt: given.append(prompt))
    model(images())
    assert torch.equal(read[0].flatten(2).transpose(1, 2), given[0])


@pytest.mark.parametrize("size", [(32, 32), (61, 90)])
def test_any_size_in_the_published_order_of_operations(size: tuple[int, int]) -> None:
    model = small().eval()
    logits = model(images(*size)).logits
    assert logits.shape == (2, 5, *size)
    enlarged = functional.interpolate(model.decoder(model.encode(images(*size))), scale_factor=4, mode="bilinear")
    torch.testing.assert_close(logits, model.classifier(enlarged)[:, :, : size[0], : size[1]])


def test_inputs_are_those_of_the_release() -> None:
    rgb, depth = small().input_spec.streams
    assert (rgb.mean, rgb.channel_order) == ((0.485, 0.456, 0.406), "stored")
    assert (depth.mean, depth.std, depth.divide_by) == ((0.449,) * 3, (0.226,) * 3, 255)


def test_other_encoders_have_no_blocks_for_prompts() -> None:
    with pytest.raises(UsageError, match="Mix Transformer"):
        DPLNet(5, "resnet18")
