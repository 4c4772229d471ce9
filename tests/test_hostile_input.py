"""Whatever a file or an argument holds: it is read, or refused in one sentence; never a bug, a hang or a wrong place.

A run over a longer time, with its counts: ``RGBDSEG_HOSTILE_SECONDS=180 pytest -s tests/test_hostile_input.py``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from rgbdseg.cli.config_args import config_parser, parse_config, read_config_file
from rgbdseg.cli.main import main
from rgbdseg.config.train import TrainConfig
from rgbdseg.data.dataset import RGBDDataset
from rgbdseg.data.description import DatasetDescription
from rgbdseg.data.images import image_size, read_depth, read_hha, read_label_values, read_rgb
from rgbdseg.data.json_fields import load_json
from rgbdseg.data.output_folder import begin_writing, record_name
from rgbdseg.data.tree import open_tree
from rgbdseg.datasets.nyuv2 import NYU13
from rgbdseg.depth import MILLIMETERS
from rgbdseg.engine.checkpoints import read_progress
from rgbdseg.engine.run_folder import RunFolder, trim_log
from rgbdseg.errors import RGBDSegError
from rgbdseg.input_spec import InputSpec, hha_stream, rgb_stream
from rgbdseg.prepare.intrinsics import read_intrinsics
from rgbdseg.prepare.pairing import read_associations, read_stamps
from rgbdseg.prepare.recording import read_class_names
from rgbdseg.weights.checkpoint import load_bundle, read_stored_model, save_bundle
from rgbdseg.weights.facts import FACTS_KEY, ModelFacts
from rgbdseg.weights.files import read_state_dict
from tests.hostile import as_json, npy, npy_with_header, spoil_bytes, spoil_values
from tests.synthetic import write_tree

SECONDS = float(os.environ.get("RGBDSEG_HOSTILE_SECONDS", "0"))
"""For each kind of file; 0: as many cases as the kind says."""
SLOWEST_S = 15.0
"""Of computing, for a single case."""
SIZE = (12, 16)

Spoil = Callable[[random.Random, Any], bytes]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: its name, what a valid one holds, how it is read, and how often it is spoiled in the suite."""

    file: str
    valid: Any
    read: Callable[[Path], object]
    cases: int = 120
    spoil: Spoil = spoil_bytes


def values(random_: random.Random, valid: Any) -> bytes:
    return as_json(spoil_values(random_, valid))


def yaml_values(random_: random.Random, valid: Any) -> bytes:
    return yaml.safe_dump(spoil_values(random_, json.loads(json.dumps(valid)))).encode("utf-8", "surrogatepass")


def picture(pixels: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


FACTS = ModelFacts(
    "deeplabv3plus_resnet18",
    {"inputs": ["rgb", "hha"]},
    InputSpec((rgb_stream(), hha_stream())),
    NYU13,
    dataset="d",
    hha={"normal_radius": 3},
    config=TrainConfig().to_dict(),
).to_dict()
CAMERA = {"fx": 12.8, "fy": 12.8, "cx": 7.5, "cy": 5.5}
ROS = {"image_height": 12, "image_width": 16, "K": [12.8, 0, 7.5, 0, 12.8, 5.5, 0, 0, 1], "D": [0.0] * 5}
OPEN3D = {"width": 16, "height": 12, "intrinsic_matrix": [12.8, 0, 0, 0, 12.8, 0, 7.5, 5.5, 1], "depth_scale": 1000}
AZURE = {
    "CalibrationInformation": {
        "Cameras": [
            {
                "Location": "CALIBRATION_CameraLocationPV0",
                "SensorWidth": 4096,
                "SensorHeight": 3072,
                "Intrinsics": {"ModelParameters": [0.5, 0.5, 0.5, 0.66, 0.1, 0.1]},
            }
        ]
    }
}
GRAY = np.arange(192, dtype=np.uint8).reshape(SIZE) % 5
DEPTH = (np.arange(192, dtype=np.uint16).reshape(SIZE) + 900).astype(np.uint16)
COLORS = np.stack([GRAY * 40] * 3, axis=-1)


def tree_description() -> dict[str, Any]:
    return {
        "format": 1,
        "name": "mine",
        "source": "s",
        "label_set": {"name": "l", "classes": ["a", "b", "c", "d"], "palette": [[i, i, i] for i in range(4)]},
        "void_label": [0],
        "first_label": 1,
        "depth": DatasetDescription(name="", depth=MILLIMETERS).to_dict()["depth"],
        "cameras": "cameras.json",
        "size": list(SIZE),
        "splits": {"train": "train.txt", "test": "test.txt"},
        "folders": {"rgb": "RGB", "depth_m": "Depth"},
        "hha": {"normal_radius": 3},
        "links": False,
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("hostile") / "tree", 3, SIZE, hha=True, cameras="per_image")
    (root / "dataset.json").write_bytes(as_json(tree_description()))
    return root


def read_all(root: Path) -> None:
    opened = open_tree(root)
    for split in (*opened.split_names, "all"):
        dataset = RGBDDataset(opened, split)
        for index in range(len(dataset)):
            dataset.sample(index)


def read_config(path: Path) -> TrainConfig:
    return parse_config(config_parser("train", read_config_file(path)), [], TrainConfig)


def read_depth_and_size(path: Path) -> object:
    return read_depth(path, MILLIMETERS), image_size(path)


def unfinished(path: Path) -> object:
    return begin_writing(path.parent, {"name": "mine"}, {"name": "mine"}, ["RGB"], {"1": "a"})


def checkpoint_bytes(kind: str) -> bytes:
    state = {"model.w": torch.zeros(3), "model.n": torch.tensor(1)}
    if kind == "ckpt":
        buffer = io.BytesIO()
        torch.save({"state_dict": state, FACTS_KEY: {**FACTS, "progress": {"epoch": 1, "iteration": 3}}}, buffer)
        return buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(ModelFacts.from_dict(FACTS), state, Path(folder) / "a.safetensors")
        return (Path(folder) / "a.safetensors").read_bytes()


def with_facts(random_: random.Random, valid: Any) -> bytes:
    """A .safetensors file whose tensors are right and whose facts are not."""
    facts = spoil_values(random_, valid)
    text = random_.choice((json.dumps(facts), json.dumps(facts), "null", "[]", "[" * 100_000, "9" * 5000, "\x00"))
    return io.BytesIO(save({"w": torch.zeros(3)}, {FACTS_KEY: text})).getvalue()


def with_state(random_: random.Random, valid: Any) -> bytes:
    """A .ckpt file that PyTorch reads, of another content."""
    buffer = io.BytesIO()
    torch.save(spoil_values(random_, valid), buffer)
    return buffer.getvalue()


RUN = {
    "global_step": 3,
    "state_dict": {"model.w": [0.0]},
    "optimizer_states": [{"state": {}, "param_groups": []}],
    FACTS_KEY: {**FACTS, "progress": {"epoch": 1, "iteration": 3, "epoch_finished": True}},
}

LOG = b'{"iteration": 1, "loss": 2}\n{"iteration": 2, "miou": 0.1}\n'
KINDS: dict[str, Kind] = {
    "json": Kind("a.json", tree_description(), load_json, 200, lambda r, v: spoil_bytes(r, as_json(v))),
    "names of classes": Kind("names.txt", b"# c\nfloor\nwall\nbox\n", read_class_names, 150),
    "associations": Kind("a.txt", b"1.0 rgb/1.png 1.0 depth/1.png\n", lambda p: read_associations(p, p.parent), 150),
    "time stamps": Kind("rgb.txt", b"# t\n1.0 rgb/1.png\n1.1 rgb/2.png\n", read_stamps, 150),
    "plain intrinsics": Kind("c.json", CAMERA, lambda p: read_intrinsics(p, SIZE), 150, values),
    "Open3D intrinsics": Kind("c.json", OPEN3D, lambda p: read_intrinsics(p, SIZE), 150, values),
    "Azure intrinsics": Kind("c.json", AZURE, lambda p: read_intrinsics(p, SIZE), 150, values),
    "ROS intrinsics": Kind("c.yaml", ROS, lambda p: read_intrinsics(p, SIZE), 150, yaml_values),
    "YAML intrinsics": Kind("c.yml", yaml.safe_dump(ROS).encode(), lambda p: read_intrinsics(p, SIZE), 150),
    "color png": Kind("a.png", picture(COLORS, "PNG"), read_rgb, 150),
    "color jpeg": Kind("a.jpg", picture(COLORS, "JPEG"), read_rgb, 150),
    "color webp": Kind("a.webp", picture(COLORS, "WEBP"), read_rgb, 80),
    "HHA image": Kind("a.png", picture(COLORS, "PNG"), read_hha, 80),
    "labels": Kind("a.png", picture(GRAY, "PNG"), read_label_values, 120),
    "depth png": Kind("a.png", picture(DEPTH, "PNG"), lambda p: read_depth(p, MILLIMETERS), 120),
    "depth tiff": Kind("a.tif", picture(DEPTH.astype(np.float32), "TIFF"), lambda p: read_depth(p, MILLIMETERS), 200),
    "depth npy": Kind("a.npy", npy(DEPTH), read_depth_and_size, 150),
    "npy header": Kind("a.npy", npy(DEPTH), read_depth_and_size, 200, npy_with_header),
    "config": Kind("c.yaml", TrainConfig().to_dict(), read_config, 8, yaml_values),
    "config text": Kind("c.yaml", yaml.safe_dump(TrainConfig().to_dict()).encode(), read_config, 6),
    "stored config": Kind("config.yaml", b"seed: 1\n", lambda p: RunFolder(p.parent).stored_config(), 100),
    "log": Kind(
        "log.jsonl", b'{"iteration": 1, "loss": 2}\n{"iteration": 2, "miou": 0.1}\n', lambda p: trim_log(p, 1), 150
    ),
    "record": Kind(record_name("mine"), {"name": "mine", "sources": {"1": "b"}}, unfinished, 100, values),
    "checkpoint": Kind("a.ckpt", checkpoint_bytes("ckpt"), read_stored_model, 150),
    "checkpoint content": Kind("a.ckpt", RUN, lambda p: (read_progress(p), read_stored_model(p)), 60, with_state),
    "safetensors": Kind("a.safetensors", checkpoint_bytes("safetensors"), read_stored_model, 150),
    "safetensors facts": Kind("a.safetensors", FACTS, read_stored_model, 120, with_facts),
    "model of facts": Kind("a.safetensors", FACTS, load_bundle, 10, with_facts),
    "published": Kind("a.pth", checkpoint_bytes("ckpt"), read_state_dict, 100),
}
IN_A_TREE: dict[str, Kind] = {
    "dataset.json": Kind("dataset.json", tree_description(), lambda p: read_all(p.parent), 150, values),
    "dataset.json text": Kind("dataset.json", as_json(tree_description()), lambda p: read_all(p.parent), 60),
    "cameras.json": Kind("cameras.json", {str(i): CAMERA for i in range(3)}, lambda p: read_all(p.parent), 60, values),
    "list": Kind("train.txt", b"RGB/0.png\tLabel/0.png\nRGB/1.png\tLabel/1.png\n", lambda p: read_all(p.parent), 60),
    "hha.json": Kind("HHA/hha.json", {"format": 1, "parameters": {}}, lambda p: read_all(p.parent.parent), 60, values),
}


NOT_WHOLE = ("associations", "published")
"""Kinds that name files which are not there, or hold more than weights."""


def cases(kind: Kind, name: str) -> Iterator[tuple[int, bytes]]:
    start, number = time.monotonic(), 0
    while number < kind.cases if not SECONDS else time.monotonic() - start < SECONDS:
        yield number, kind.spoil(random.Random(zlib.crc32(name.encode()) + number), kind.valid)
        number += 1


def check_reader(name: str, kind: Kind, folder: Path) -> None:
    """Read spoiled files; only what a user can mend may be raised."""
    count: Counter[str] = Counter()
    slowest = 0.0
    if kind.spoil is spoil_bytes and name not in NOT_WHOLE:
        (folder / kind.file).write_bytes(kind.valid)
        kind.read(folder / kind.file)
    for number, content in cases(kind, name):
        path = folder / kind.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        start = time.process_time()
        try:
            kind.read(path)
            count["read"] += 1
        except RGBDSegError as error:
            count["refused" if str(error).strip() else "refused without a word"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, case {number}: {content[:300]!r}") from error
        slowest = max(slowest, time.process_time() - start)
    print(f"{name}: {dict(count)}, slowest {slowest:.2f} s")
    assert set(count) <= {"read", "refused"}, count
    assert count["refused"] > 0 or name == "log", "spoiled too little to show anything"
    assert slowest < SLOWEST_S


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_spoiled_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    check_reader(name, KINDS[name], tmp_path)


@pytest.mark.parametrize("name", IN_A_TREE)
@pytest.mark.filterwarnings("ignore")
def test_a_spoiled_file_of_a_tree_is_read_or_refused(name: str, tree: Path) -> None:
    kind = IN_A_TREE[name]
    path = tree / kind.file
    valid = path.read_bytes() if path.exists() else None
    try:
        check_reader(name, kind, tree)
    finally:
        path.unlink()
        if valid is not None:
            path.write_bytes(valid)
    read_all(tree)


def commands(tree: Path, folder: Path) -> dict[str, list[str]]:
    """Commands that end in a moment, as lists of arguments."""
    tree_text, config = str(tree), str(folder / "c.yaml")
    return {
        "check": ["check", tree_text, "--limit", "1", "--workers", "0", "--splits", "train"],
        "hha": ["hha", tree_text, "--cache", str(folder / "cache"), "--workers", "0"],
        "info": ["info", str(folder / "a.ckpt")],
        "info text": ["info", config],
        "recipes": ["recipes", "demo"],
        "models": ["zoo", "litefusion"],
        "train": ["train", config, "--data", str(folder / "none"), "--seed", "3", "--out", str(folder / "r")],
        "resume": ["train", "--resume", "--out", str(folder / "run"), "--data", str(folder / "none")],
        "predict": ["predict", config, "--rgb", str(tree / "RGB"), "--out", str(folder / "p"), "--crop", "3"],
        "evaluate": ["evaluate", str(folder), "--data", tree_text, "--limit", "1", "--scales", "1", "--epochs", "1-2"],
        "convert": ["convert", "cmx_mit_b2", str(folder / "a.ckpt"), str(folder / "o.safetensors")],
        "prepare": [
            "prepare", "folder", str(tree), str(folder / "out"), "--rgb", "RGB", "--depth", "Depth", "--camera",
            "1,1,1,1", "--metres-per-unit", "0.001", "--every", "2", "--void-label", "3", "--workers", "0",
        ],
    }  # fmt: skip


HOSTILE_ARGUMENTS = (
    "", " ", "-", "--", "--x", "0", "-1", "1.5", "nan", "inf", "1e999", "9" * 5000, "null", "[]", "{}", "[" * 2000,
    "&a [*a]", "!!bool x", "0b_", "2020-13-45", "..", "/", "\udcff", "x\ny", "*", "a:b", "hf:", "hf:a/b/c", "demo:x",
    "os:system", "--help", "--loss.class_weights", "--model.options", "--seed=x", "é", "x" * 3000, "%s", "{0}",
)  # fmt: skip


@pytest.mark.parametrize("name", commands(Path(), Path()))
@pytest.mark.filterwarnings("ignore")
def test_a_spoiled_command_says_what_is_wrong(
    name: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    valid = commands(tree, tmp_path)[name]
    (tmp_path / "run").mkdir()
    before = sorted(path for path in tree.rglob("*"))
    count: Counter[str] = Counter()
    number, start = 0, time.monotonic()
    while number < 8 if not SECONDS else time.monotonic() - start < SECONDS:
        random_ = random.Random(zlib.crc32(name.encode()) + number)
        arguments = list(valid)
        for _ in range(random_.randint(1, 2)):
            at = random_.randint(1, len(arguments))
            kept = random_.randint(0, 1)
            arguments[at : at + kept] = [random_.choice(HOSTILE_ARGUMENTS)]
        file = random_.choice(("c.yaml", "a.ckpt", "run/config.yaml"))
        text = yaml.safe_dump(TrainConfig(recipe="demo").to_dict()).encode()
        (tmp_path / file).write_bytes(spoil_bytes(random_, random_.choice((text, b"seed: 1\n", b""))))
        try:
            status = main(arguments)
        except SystemExit as ended:  # --help
            status = int(ended.code or 0)
        said = capsys.readouterr()
        count[f"exit {status}"] += 1
        assert status in (0, 1), (number, arguments, said.err)
        assert len(said.err.strip().splitlines()) <= 1 or status == 0, (number, arguments, said.err)
        number += 1
    print(f"{name}: {dict(count)}")
    assert sorted(path for path in tree.rglob("*")) == before
