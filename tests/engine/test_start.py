"""What a run takes from an earlier one, what it says about it, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rgbdseg.config.loss import LossConfig
from rgbdseg.config.train import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from rgbdseg.engine.start import EarlierWeights, class_tensors, load_earlier_weights
from rgbdseg.engine.stop import Interrupted
from rgbdseg.engine.train import train
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.input_spec import InputSpec, rgb_stream
from rgbdseg.labels import LabelSet, generic_palette
from rgbdseg.losses import segmentation_loss
from rgbdseg.models._base import SegmentationModel
from rgbdseg.models._registry import create_model
from rgbdseg.recipes import get_recipe
from rgbdseg.weights.checkpoint import load_torch, read_stored_model, save_bundle
from rgbdseg.weights.facts import ModelFacts
from tests.engine.test_train_resume import interrupt_at, read_log, tiny_config
from tests.models.feed import feed
from tests.synthetic import write_tree

NAME = "deeplabv3plus_resnet18"
CLASS_LAYERS = {
    f"{layer}.{leaf}" for layer in ("decoder.classifier", "auxiliary_head.4") for leaf in ("weight", "bias")
}
PADNET = {"branch_channels": 8, "small_branch_channels": 8, "channels": 8}
GNN3D = {"channels": 8, "hidden_channels": 8, "neighbors": 4}


def labels(*names: str) -> LabelSet:
    return LabelSet("labels", names, generic_palette(len(names)))


ABC, XYZ, TWO = labels("a", "b", "c"), labels("x", "y", "z"), labels("a", "b")


def build(seed: int, label_set: LabelSet, name: str = NAME, **options: Any) -> SegmentationModel:
    torch.manual_seed(seed)
    return create_model(name, len(label_set), **options)


def save(
    path: Path, model: SegmentationModel, label_set: LabelSet = ABC, name: str = NAME, **changes: Tensor | None
) -> Path:
    """Write the model; ``changes`` replace, add or (None) remove entries, ``__`` standing for the dot."""
    state: dict[str, Tensor] = dict(model.state_dict())
    for key, value in changes.items():
        state.pop(key.replace("__", "."), None)
        if value is not None:
            state[key.replace("__", ".")] = value
    save_bundle(ModelFacts(name, {}, model.input_spec, label_set), state, path)
    return path


def start(
    model: SegmentationModel, source: Path, label_set: LabelSet = ABC, name: str = NAME, **options: Any
) -> EarlierWeights:
    return load_earlier_weights(model, ModelConfig(name, options, start_from=str(source)), label_set)


# --- what is taken


def test_with_the_same_classes_everything_is_taken(tmp_path: Path) -> None:
    source, model = build(1, ABC), build(2, ABC)
    report = start(model, save(tmp_path / "s.safetensors", source))
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    assert report.taken == report.tensors == len(source.state_dict())
    assert str(report).endswith(f"s.safetensors: {report.taken} of {report.taken} tensors taken")


@pytest.mark.parametrize("label_set", [TWO, XYZ], ids=["another number", "as many others"])
def test_other_classes_start_anew(tmp_path: Path, label_set: LabelSet) -> None:
    source, model, fresh = build(1, ABC), build(2, label_set), build(2, label_set)
    report = start(model, save(tmp_path / "s.safetensors", source), label_set)
    for name, value in model.state_dict().items():
        origin = fresh if name in CLASS_LAYERS else source
        assert torch.equal(value, origin.state_dict()[name]), name
    assert report.new_classes == ("decoder.classifier", "auxiliary_head.4")
    assert report.taken == report.tensors - len(CLASS_LAYERS)
    assert (report.new, report.unused, report.adapted) == ((), (), ())
    assert "new for other classes: decoder.classifier, auxiliary_head.4" in str(report)


def test_what_is_missing_or_left_over_beside_the_backbone_is_reported(tmp_path: Path) -> None:
    source, model, fresh = build(1, ABC), build(2, ABC), build(2, ABC)
    auxiliary = {name.replace(".", "__"): None for name in source.state_dict() if name.startswith("auxiliary_head.")}
    path = save(tmp_path / "s.safetensors", source, old__head__weight=torch.ones(2), **auxiliary)
    report = start(model, path)
    assert (report.new, report.unused) == (("auxiliary_head",), ("old",))
    assert "new, not in the file: auxiliary_head; in the file but unused: old" in str(report)
    assert torch.equal(model.state_dict()["auxiliary_head.4.bias"], fresh.state_dict()["auxiliary_head.4.bias"])


def test_every_layer_that_sees_or_predicts_classes_is_known() -> None:
    """That of PAD-Net which takes class scores in has them in its second dimension."""
    assert class_tensors(ModelConfig("padnet_resnet18", PADNET), 3) == [
        "heads.segmentation.weight",
        "heads.segmentation.bias",
        "lifts.segmentation.0.weight",
        "decoders.segmentation.2.weight",
        "decoders.segmentation.2.bias",
    ]


# --- what is refused


def refused(model: SegmentationModel, source: Path, *words: str, **options: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        start(model, source, **options)
    for word in words:
        assert word in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_backbone_that_does_not_fit_as_a_whole_is_refused(tmp_path: Path) -> None:
    source = build(1, ABC)
    less = save(tmp_path / "less.safetensors", source, encoder__layer4__0__conv1__weight=None)
    refused(
        build(2, ABC), less, "1 tensors of the backbone are missing (encoder.layer4.0.conv1.weight)", f"holds {NAME}"
    )
    # All of ours is in a deeper network of the same widths, which is another one nevertheless.
    deeper = save(tmp_path / "deeper.safetensors", source, encoder__layer4__2__bn1__bias=torch.zeros(512))
    refused(build(2, ABC), deeper, "1 tensors of its backbone have no place (encoder.layer4.2.bn1.bias)")
    other = build(2, ABC, "sagate_resnet18")
    refused(other, save(tmp_path / "s.safetensors", source), "backbone are missing (", name="sagate_resnet18")


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "s.safetensors", build(1, ABC))
    narrow = build(2, TWO, decoder_channels=32)
    message = "does not fit deeplabv3plus_resnet18 with decoder_channels=32: "
    shapes = "tensors have another shape (decoder.aspp.branches.0.weight is (64, 512, 1, 1), expected (32, 512, 1, 1)"
    refused(narrow, path, message, shapes, "the same model.options", label_set=TWO, decoder_channels=32)
    # With the same classes, what predicts them must fit as well.
    wrong = save(tmp_path / "wrong.safetensors", build(1, ABC), decoder__classifier__bias=torch.zeros(9))
    refused(build(2, ABC), wrong, "1 tensors have another shape (decoder.classifier.bias is (9,), expected (3,))")


def test_images_that_were_shown_otherwise_are_refused(tmp_path: Path) -> None:
    source = build(1, ABC)
    source.input_spec = InputSpec((rgb_stream((0.5, 0.5, 0.5)),))
    refused(
        build(2, ABC), save(tmp_path / "s.safetensors", source), "stream 'rgb' of its input has mean (0.5, 0.5, 0.5)"
    )
    noise = build(1, ABC, "sagate_resnet18", second_stream="noise")
    path = save(tmp_path / "noise.safetensors", noise, name="sagate_resnet18")
    refused(build(2, ABC, "sagate_resnet18"), path, "its input has noise and this model's hha", name="sagate_resnet18")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"model": build(1, ABC).state_dict()}, tmp_path / "published.pth")
    model = build(2, ABC)
    refused(model, tmp_path / "empty", "model.start_from: ", "holds no last.ckpt")
    refused(model, tmp_path / "text.ckpt", "not a PyTorch checkpoint")
    refused(model, tmp_path / "published.pth", "rgbdseg convert")
    refused(model, tmp_path / "absent", "no checkpoint or run folder at")


def test_a_start_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.start_from is not set; expected a run folder, a checkpoint or"):
        load_earlier_weights(build(1, ABC), ModelConfig(NAME), ABC)


def test_the_encoder_cannot_come_from_two_files() -> None:
    with pytest.raises(UsageError, match=r"model.start_from is runs/a and model.encoder_weights timm.*to null"):
        ModelConfig(encoder_weights="timm", start_from="runs/a")


# --- methods with two phases


def test_the_graph_joins_a_trained_image_network_without_changing_its_logits(tmp_path: Path) -> None:
    name = "gnn3d_resnet18"
    image, joined = build(1, ABC, name, steps=0, **GNN3D).eval(), build(2, ABC, name, **GNN3D).eval()
    report = start(joined, save(tmp_path / "s.safetensors", image, name=name), name=name, **GNN3D)
    assert (report.new, report.unused) == (("propagation",), ())
    assert report.adapted == ("classifier.0.weight",)
    rgb, depth_m = torch.rand(2, 3, 32, 40), 1 + torch.rand(2, 1, 32, 40)
    camera = torch.tensor([[30.0, 30.0, 20.0, 16.0]]).expand(2, 4)
    torch.testing.assert_close(feed(joined, rgb, depth_m, camera).logits, feed(image, rgb).logits)
    # The weights that were put at 0 learn at once, and after them the graph.
    optimizer = torch.optim.SGD(joined.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        target = torch.randint(3, (2, 32, 40), generator=torch.Generator().manual_seed(1))
        segmentation_loss(feed(joined, rgb, depth_m, camera), target, LossConfig()).total.backward()
        optimizer.step()
    gradient = joined.get_parameter("propagation.update.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_a_graph_of_other_widths_does_not_join(tmp_path: Path) -> None:
    name, narrow = "gnn3d_resnet18", {**GNN3D, "channels": 4}
    path = save(tmp_path / "s.safetensors", build(1, ABC, name, steps=0, **narrow), name=name)
    refused(build(2, ABC, name, **GNN3D), path, "classifier.0.weight is (4, 4, 1, 1)", name=name, **GNN3D)


def test_the_second_phase_of_pad_net_starts_from_the_first(tmp_path: Path) -> None:
    first, second = get_recipe("padnet-nyuv2-initial"), get_recipe("padnet-nyuv2")
    assert first.loss.main_weight == second.loss.auxiliary_weights["initial_segmentation"]
    weights = dict(second.loss.auxiliary_weights)
    del weights["depth"], weights["initial_segmentation"]
    assert first.loss.auxiliary_weights == weights
    name = "padnet_resnet18"
    initial = build(1, ABC, name, **first.model.options, **PADNET).train()
    whole = build(2, ABC, name, **second.model.options, **PADNET)
    # What the recipe weighs is there, and everything that is there is trained.
    assert {a.name for a in initial({"rgb": torch.rand(2, 3, 32, 32)}).aux} == set(weights)
    report = start(whole, save(tmp_path / "s.safetensors", initial, name=name), name=name, **PADNET)
    assert (report.new, report.unused, report.new_classes) == (("lifts", "distillations", "decoders"), (), ())
    for key, value in initial.state_dict().items():
        assert torch.equal(whole.state_dict()[key], value), key


# --- whole runs


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tree", count=4, size=(40, 48))


@pytest.fixture(scope="module")
def own_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("own") / "tree", count=4, size=(40, 48), classes=("a", "b", "c"))


def short(tree: Path, source: Path | None = None, **changes: Any) -> TrainConfig:
    schedule = ScheduleConfig(epochs=1, iterations_per_epoch=2, warmup_epochs=0, validate_every_epochs=0)
    model = ModelConfig(NAME, start_from=None if source is None else str(source))
    return tiny_config(tree, schedule=schedule, model=model, **changes)


def test_a_run_from_another_resumes_without_it(
    tree: Path, own_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = train(short(tree), tmp_path / "source")
    config = short(own_tree, source.root)
    whole = train(config, tmp_path / "whole")
    (line,) = [entry for entry in read_log(whole) if "started_from" in entry]
    said: Any = line["started_from"]
    assert (line["iteration"], said["path"], said["epoch"]) == (0, str(source.last), 1)
    assert said["new_classes"] == ["decoder.classifier", "auxiliary_head.4"]

    with monkeypatch.context() as patch:
        interrupt_at(patch, 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    shutil.rmtree(source.root)
    resumed = train(config, tmp_path / "run", resume=True)
    one, two = load_torch(whole.last)["state_dict"], load_torch(resumed.last)["state_dict"]
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert len([entry for entry in read_log(resumed) if "started_from" in entry]) == 1
    # A new run needs it.
    with pytest.raises(CheckpointError, match="no checkpoint or run folder"):
        train(config, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_training_starts_from_the_average_where_one_was_kept(tree: Path, tmp_path: Path) -> None:
    source = train(short(tree, ema_decay=0.5), tmp_path / "source")
    # So small a rate that float32 does not see it: the weights stay where they start.
    still = short(tree, source.last, optimizer=OptimizerConfig(learning_rate=1e-30, weight_decay=0.0, momentum=0.0))
    run = train(still, tmp_path / "run")
    name = "encoder.conv1.weight"
    saved = load_torch(source.last)
    found = read_stored_model(run.last).state[name]
    assert torch.equal(found, saved["state_dict"][f"model.{name}"])
    assert not torch.equal(found, saved["current_model_state"][f"model.{name}"])


def test_a_config_without_the_field_is_one_without_a_start() -> None:
    stored = json.loads(json.dumps(TrainConfig().to_dict()))
    assert stored["model"].pop("start_from", "absent") is None
    assert ModelConfig(**stored["model"]) == ModelConfig()
