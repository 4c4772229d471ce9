from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rgbdseg
from rgbdseg import create_model
from rgbdseg.cli.main import main
from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.depth import MILLIMETERS
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.export import export as export_module
from rgbdseg.export import table as table_module
from rgbdseg.export.bundle import write_bundle
from rgbdseg.export.export import Exported, Frames, export_model, trtexec_line
from rgbdseg.export.frames import dataset_frames, room_frames
from rgbdseg.export.onnx_graph import ExportError, GraphStages, OnnxRunner, with_outputs
from rgbdseg.export.onnx_segmenter import OnnxSegmenter
from rgbdseg.export.openvino import OpenVINORunner, write_openvino
from rgbdseg.export.parity import BARS, ParityBar, ParityReport, graph_inputs, plain_frame
from rgbdseg.export.plan import GraphPlan
from rgbdseg.export.table import BEGIN, END, FamilyExport, _speeds, export_family, write_table
from rgbdseg.input_spec import InputSpec, hha_stream, metric_depth_stream, rgb_stream
from rgbdseg.labels import LabelSet, LabelValues
from rgbdseg.outputs import LabelFiles
from rgbdseg.segmenter import Segmenter
from rgbdseg.weights.checkpoint import load_bundle, save_bundle
from rgbdseg.weights.facts import ModelFacts
from tests.export.networks import ABC, Mixing
from tests.synthetic import write_tree

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = (32, 48)
DEPTH = InputSpec((rgb_stream(), metric_depth_stream()), size_divisor=16)


_MADE: dict[str, tuple[bytes, Exported]] = {}


VALUES = LabelValues((1, 2, 300), 0)
"""Numbers in the label files that the network is said to be trained on."""


def exported(spec: InputSpec, out: Path, precision: str = "fp32", **plan: object) -> tuple[Segmenter, Exported]:
    """Export, or write again what was exported before."""
    key = f"{spec} {out.suffix} {precision} {plan}"
    if key not in _MADE:
        segmenter, found = export_now(spec, out, precision, **plan)
        _MADE[key] = (out.read_bytes(), found)
        return segmenter, found
    out.write_bytes(_MADE[key][0])
    return mixing(spec, protocol=_MADE[key][1].plan.protocol), _MADE[key][1]


def mixing(spec: InputSpec, **options: Any) -> Segmenter:
    options |= {"name": "mixing", "label_values": VALUES, "dataset": "mine"}
    return Segmenter(Mixing(spec), ABC, device="cpu", **options)


def export_now(spec: InputSpec, out: Path, precision: str = "fp32", **plan: object) -> tuple[Segmenter, Exported]:
    graph_plan = GraphPlan(spec, **{"size": SIZE, "scores": True, **plan})  # type: ignore[arg-type]
    segmenter = mixing(spec, protocol=graph_plan.protocol)
    frames, label_set = room_frames(graph_plan.size or SIZE, 2, spec)
    secret = {"data": "/home/me/secret"}
    facts = ModelFacts("mixing", {}, spec, ABC, "mine", config=secret, label_values=VALUES)
    found = export_model(segmenter, facts, graph_plan, out, Frames(frames, label_set), precision=precision)
    return segmenter, found


# --- a graph as a segmenter


def test_a_graph_loads_and_labels_as_its_model(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    segmenter, found = exported(DEPTH, file)
    assert found.report.passed
    assert found.free_batch
    graph = rgbdseg.load(file)
    assert isinstance(graph, OnnxSegmenter)
    assert graph.names == ABC.classes
    assert graph.input_spec == DEPTH
    room = room_frames(SIZE, 3, DEPTH)[0][2]
    assert room.depth_m is not None
    rgb, depth = room.rgb.permute(1, 2, 0).numpy(), room.depth_m[0].numpy()
    wanted, got = (one(rgb, depth, room.camera) for one in (segmenter, graph))
    assert np.array_equal(got.labels, wanted.labels)
    np.testing.assert_allclose(got.confidence, wanted.confidence, atol=1e-5)
    assert got.palette == ABC.palette
    assert len(got.save(tmp_path / "out")) == 4
    # Whole numbers in another unit than the graph's, and several frames.
    stored = np.rint(1000 * depth).astype(np.uint16)
    both = graph([rgb, rgb], [stored, stored], depth_unit="mm")
    assert (both[1].labels == wanted.labels).mean() > 0.99
    difference = graph.score(room).log_scores - segmenter.score(plain_frame(room, graph.plan)).log_scores
    assert difference.abs().max() < 1e-3


def test_what_a_graph_says_of_itself(tmp_path: Path) -> None:
    exported(DEPTH, tmp_path / "graph.onnx", depth_unit=MILLIMETERS, whole_numbers=True)
    model = onnx.load(tmp_path / "graph.onnx")
    onnx.checker.check_model(model)
    (entry,) = model.metadata_props
    facts = json.loads(entry.value)
    assert entry.key == "rgbdseg"
    assert facts["model"]["label_set"]["classes"] == ["a", "b", "c"]
    assert facts["model"]["input_spec"] == DEPTH.to_dict()
    assert facts["plan"]["depth_unit"]["meters_per_unit"] == 0.001
    assert facts["versions"]["rgbdseg"] == rgbdseg.__version__
    assert facts["parity"]["passed"] is True
    assert "secret" not in entry.value
    shapes = {
        one.name: [d.dim_value or d.dim_param for d in one.type.tensor_type.shape.dim] for one in model.graph.input
    }
    assert list(shapes) == ["rgb", "depth"]
    assert shapes["rgb"][1:] == [*SIZE, 3]
    assert isinstance(shapes["rgb"][0], str)
    types = {one.name: one.type.tensor_type.elem_type for one in [*model.graph.input, *model.graph.output]}
    assert types == {
        "rgb": onnx.TensorProto.UINT8, "depth": onnx.TensorProto.UINT16, "labels": onnx.TensorProto.UINT8,
        "confidence": onnx.TensorProto.FLOAT, "scores": onnx.TensorProto.FLOAT,
    }  # fmt: skip


def test_open_sizes(tmp_path: Path) -> None:
    segmenter, _ = exported(DEPTH, tmp_path / "graph.onnx", size=None, protocol=EvaluationProtocol(flip=True))
    graph = rgbdseg.load(tmp_path / "graph.onnx")
    for size in ((16, 16), (45, 61), (64, 64)):
        room = room_frames(size, 1, DEPTH)[0][0]
        assert (graph.segment(room.replace(raw_depth_m=None)).labels == segmenter.segment(room).labels).mean() > 0.999


def test_errors_of_graphs(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    exported(DEPTH, file)
    graph = rgbdseg.load(file)
    room = room_frames((48, 48), 1, DEPTH)[0][0].replace(raw_depth_m=None)
    with pytest.raises(DataError, match="is 48x48, but the graph was made for 32x48"):
        graph.segment(room)
    exported(DEPTH, tmp_path / "bare.onnx", scores=False)
    with pytest.raises(UsageError, match="export it with scores"):
        rgbdseg.load(tmp_path / "bare.onnx").score(room)
    with pytest.raises(UsageError, match="holds how an image is looked at"):
        rgbdseg.load(file, protocol=EvaluationProtocol())
    with pytest.raises(UsageError, match="leave both out"):
        rgbdseg.load(file, precision="bf16-mixed")
    assert rgbdseg.load(file, precision="auto").autocast_dtype is None  # what live asks for
    with pytest.raises(CheckpointError, match="is an exported graph, without the model"):
        load_bundle(file)
    other = onnx.load(file)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="does not say what it is"):
        rgbdseg.load(tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot read"):
        rgbdseg.load(tmp_path / "text.onnx")
    with pytest.raises(UsageError, match=r"ends in '.pb'; expected .onnx, .pt2, .xml"):
        exported(DEPTH, tmp_path / "graph.pb")
    with pytest.raises(UsageError, match="unknown precision 'fp8'"):
        exported(DEPTH, file, precision="fp8")


# --- a graph that does not keep the numbers


def damaged(monkeypatch: pytest.MonkeyPatch, change: Callable[[GraphStages], None]) -> None:
    real = export_module.make_stages

    def made(model: torch.nn.Module, plan: GraphPlan) -> GraphStages:
        stages = real(model, plan)  # type: ignore[arg-type]
        change(stages)
        return stages

    monkeypatch.setattr(export_module, "make_stages", made)


def add_to(graph: object, name: str, amount: float) -> None:
    for one in graph.initializer:  # type: ignore[attr-defined]
        if one.name.endswith(name):
            values = onnx.numpy_helper.to_array(one)
            # Not the same for all classes, which would change no label.
            more = amount * np.arange(len(values), dtype=values.dtype).reshape(-1, *[1] * (values.ndim - 1))
            one.CopyFrom(onnx.numpy_helper.from_array(values + more, one.name))
            return
    raise AssertionError([one.name for one in graph.initializer])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "stage"), [("first.bias", "first departs first"), ("second.weight", "second departs first")]
)
def test_the_first_stage_that_departs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    damaged(monkeypatch, lambda stages: add_to(stages.network.graph, name, 0.5))
    with pytest.raises(ExportError, match=f"not written, for it does not keep the model's numbers.*{stage}"):
        export_now(DEPTH, tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another mean than the model was trained with: the classic."""
    real = export_module.make_stages
    other = InputSpec((dataclasses.replace(rgb_stream(), mean=(0.1, 0.5, 0.9)), metric_depth_stream()), size_divisor=16)
    monkeypatch.setattr(
        export_module, "make_stages", lambda model, plan: real(model, dataclasses.replace(plan, spec=other))
    )
    with pytest.raises(ExportError, match="input rgb departs first"):
        export_now(DEPTH, tmp_path / "graph.onnx")


def test_the_bar() -> None:
    def report(agreement: float, mean_iou: tuple[float, float] | None) -> ParityReport:
        return ParityReport(2, agreement, 0.1, 1.0, mean_iou, BARS["fp32"])

    assert report(0.9991, None).passed
    assert not report(0.9989, None).passed
    assert report(0.9999, (0.5, 0.4991)).passed
    assert not report(0.9999, (0.5, 0.4989)).passed
    assert report(0.9999, (0.5, 0.6)).passed
    assert report(0.9, (0.4, 0.4)).describe() == (
        "90.000 % equal labels on 2 frames; largest logit difference 0.1 (standard deviation 1); mIoU 40.00 in "
        "PyTorch, 40.00 in the graph"
    )


def test_labels_of_a_dataset_are_scored(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", count=4, size=SIZE, classes=("a", "b", "c"))
    frames, label_set = dataset_frames(tmp_path / "tree", "all", 3, DEPTH)
    assert len(frames) == 3
    assert label_set is not None
    labels = LabelSet("abc", label_set.classes, label_set.palette)
    segmenter = Segmenter(Mixing(DEPTH), label_set, device="cpu")
    plan = GraphPlan(DEPTH, size=SIZE)
    facts = ModelFacts("mixing", {}, DEPTH, labels)
    found = export_model(segmenter, facts, plan, tmp_path / "graph.onnx", Frames(frames, label_set))
    assert found.report.mean_iou is not None
    first, second = found.report.mean_iou
    assert first == pytest.approx(second, abs=1e-3)
    assert 0 < first < 1


# --- fewer bits, other formats


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fewer_bits_in_the_network_alone(tmp_path: Path, precision: str) -> None:
    _, found = exported(DEPTH, tmp_path / "graph.onnx", precision=precision)
    full = exported(DEPTH, tmp_path / "full.onnx")[1]
    assert found.report.passed
    assert found.report.logit_difference > 3 * full.report.logit_difference
    model = onnx.load(tmp_path / "graph.onnx")
    weights = {one.name: one.data_type for one in model.graph.initializer if "first.weight" in one.name}
    wanted = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.INT8
    assert wanted in weights.values()
    assert model.graph.output[1].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert rgbdseg.load(tmp_path / "graph.onnx").facts["precision"] == precision  # type: ignore[attr-defined]


def test_a_bar_that_eight_bits_miss_names_a_stage(tmp_path: Path) -> None:
    spec = DEPTH
    segmenter = Segmenter(Mixing(spec), ABC, device="cpu")
    frames, _ = room_frames(SIZE, 2, spec)
    with pytest.raises(ExportError, match=r"expected 100 %.*(input|first|second|logits).* departs first"):
        export_model(
            segmenter, ModelFacts("mixing", {}, spec, ABC), GraphPlan(spec, size=SIZE), tmp_path / "graph.onnx",
            Frames(frames), precision="int8", bar=ParityBar(1.0),
        )  # fmt: skip


def test_a_program_of_pytorch(tmp_path: Path) -> None:
    segmenter, found = exported(DEPTH, tmp_path / "graph.pt2")
    assert found.report.passed
    stored = {"rgbdseg.json": ""}
    program = torch.export.load(tmp_path / "graph.pt2", extra_files=stored)
    assert json.loads(stored["rgbdseg.json"])["model"]["model_name"] == "mixing"
    room = room_frames(SIZE, 1, DEPTH)[0][0]
    assert room.depth_m is not None
    labels = program.module()(room.rgb.permute(1, 2, 0)[None], room.depth_m)[0]
    assert np.array_equal(labels[0].numpy(), segmenter.segment(room).labels)


def test_a_full_disk_is_an_error_for_a_program_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    export_module.write_program(program, tmp_path / "a.pt2", '{"a": 1}')
    kept = {"rgbdseg.json": ""}
    assert torch.export.load(tmp_path / "a.pt2", extra_files=kept).module()(torch.zeros(1, 2)).shape == (1, 2)
    assert kept["rgbdseg.json"] == '{"a": 1}'

    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr(export_module, "atomic_path", full)
    with pytest.raises(OSError, match="No space left"):
        export_module.write_program(program, tmp_path / "b.pt2", "{}")


def test_openvino_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="openvino is not installed"):
        export_now(DEPTH, tmp_path / "graph.xml")


def test_openvino_runs_the_same_graph(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    segmenter, _ = exported(DEPTH, tmp_path / "graph.onnx")
    graph = (tmp_path / "graph.onnx").read_bytes()
    room = room_frames(SIZE, 1, DEPTH)[0][0]
    plan = GraphPlan(DEPTH, size=SIZE)
    found = OpenVINORunner(graph, threads=1)(graph_inputs([plain_frame(room, plan)], plan))
    assert (found["labels"][0] == segmenter.segment(room).labels).mean() > 0.999
    write_openvino(graph, {"format": 1}, tmp_path / "graph.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graph.bin", "graph.onnx", "graph.xml"]
    read = openvino.Core().read_model(tmp_path / "graph.xml")
    assert json.loads(read.get_rt_info("rgbdseg").astype(str)) == {"format": 1}
    with pytest.raises(ExportError, match="OpenVINO cannot read the graph"):
        OpenVINORunner(b"no graph")


def test_what_openvino_cannot_read_is_said_briefly() -> None:
    pytest.importorskip("openvino")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Unheard", ["a"], ["b"])], "g", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match=r"OpenVINO cannot read the graph: it cannot convert Unheard$"):
        OpenVINORunner(model.SerializeToString())


def test_a_graph_with_fewer_outputs(tmp_path: Path) -> None:
    exported(DEPTH, tmp_path / "graph.onnx")
    graph = (tmp_path / "graph.onnx").read_bytes()
    room = room_frames(SIZE, 1, DEPTH)[0][0]
    plan = GraphPlan(DEPTH, size=SIZE)
    inputs = graph_inputs([plain_frame(room, plan)], plan)
    whole, plain = OnnxRunner(graph)(inputs), OnnxRunner(with_outputs(graph, ("confidence", "labels")))(inputs)
    assert list(plain) == ["confidence", "labels"]
    assert np.array_equal(plain["labels"], whole["scores"].argmax(1))
    np.testing.assert_allclose(plain["confidence"], whole["scores"].max(1), rtol=1e-6)
    # Nothing is left that no output needs: ONNX Runtime would compute it.
    for one in (graph, with_outputs(graph, ("labels",))):
        model = onnx.load_model_from_string(one).graph
        used = {name for node in model.node for name in node.input} | {output.name for output in model.output}
        assert all(used.intersection(node.output) for node in model.node)
        assert all(constant.name in used for constant in model.initializer)
        assert any(node.op_type == "Conv" for node in model.node)
    assert not {"Softmax", "ArgMax"} & {node.op_type for node in onnx.load_model_from_string(graph).graph.node}


def test_the_table(tmp_path: Path) -> None:
    report = ParityReport(2, 0.99987, 0.02, 2.0, None, BARS["fp32"])
    speeds = {("ONNX Runtime", 1): 2.0, ("ONNX Runtime", 2): 1.5, ("OpenVINO", 1): 3.25}
    rows = [
        FamilyExport("works", "", {"ONNX Runtime": report}, {"OpenVINO": "no a|b"}, speeds),
        FamilyExport("fails", "for | that"),
        FamilyExport("tells", "a long story " * 20),
    ]
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(tmp_path / "page.md", rows, SIZE)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "| works | yes | 99.987 % | no: no a/b | 1.0e-02 | 2.00 | 1.50 | 3.25 |  |" in lines
    assert any(line.startswith("| fails | no: for / that |") for line in lines)
    told = next(line for line in lines if line.startswith("| tells"))
    assert len(told.split("|")[2].strip()) == len("no: ") + 80
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_a_family_has_the_same_weights_and_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def refuse(segmenter: Segmenter, *rest: object) -> None:
        weights.append(torch.cat([one.flatten() for one in segmenter.model.parameters()]))
        raise ExportError("seen")

    monkeypatch.setattr(table_module, "export_model", refuse)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(3)
        torch.manual_seed(seed)
        assert export_family("sagate_resnet18", SIZE, 1).problem == "seen"
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(*weights)


def test_speeds_are_ratios_in_one_run() -> None:
    room = room_frames(SIZE, 1, DEPTH)[0]
    segmenter = Segmenter(Mixing(DEPTH), ABC, device="cpu")
    runs = {("slow", 1): lambda inputs: time.sleep(0.05), ("fast", 1): lambda inputs: None}
    before = torch.get_num_threads()
    found = _speeds(segmenter, runs, GraphPlan(DEPTH, size=SIZE), Frames(room), repeats=2)  # type: ignore[arg-type]
    assert found["slow", 1] < 1 < found["fast", 1]
    assert torch.get_num_threads() == before


def test_the_line_for_tensorrt() -> None:
    plan = GraphPlan(DEPTH, size=SIZE)
    assert trtexec_line(Path("g.onnx"), plan, "fp16") == (
        "trtexec --onnx=g.onnx --saveEngine=g.plan --shapes=rgb:1x32x48x3,depth:1x32x48 --fp16"
    )


# --- a folder without PyTorch

BLOCKED = """
import sys
for name in ("torch", "torchvision", "rgbdseg", "timm", "onnx"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
"""


def bundle_of(spec: InputSpec, folder: Path, **plan: object) -> Segmenter:
    segmenter, _ = exported(spec, folder / "graph.onnx", **plan)
    write_bundle(folder / "graph.onnx", folder / "bundle")
    return segmenter


def write_frames(folder: Path, spec: InputSpec, count: int = 2) -> None:
    for index, room in enumerate(room_frames(SIZE, count, spec)[0]):
        assert room.depth_m is not None
        for kind in ("rgb", "depth"):
            (folder / kind).mkdir(exist_ok=True, parents=True)
        Image.fromarray(room.rgb.permute(1, 2, 0).numpy()).save(folder / "rgb" / f"{index}.png")
        depth_mm = np.rint(1000 * room.depth_m[0].numpy()).astype(np.uint16)
        Image.fromarray(depth_mm).save(folder / "depth" / f"{index}.png")


def check_bundle(python: list[str], segmenter: Segmenter, folder: Path, spec: InputSpec) -> None:
    """Label two frames with run.py and compare with the model."""
    write_frames(folder / "frames", spec)
    room = room_frames(SIZE, 1, spec)[0][0]
    assert room.camera is not None
    camera = ",".join(repr(value) for value in room.camera.as_tuple())
    arguments = ["--rgb", str(folder / "frames/rgb"), "--depth", str(folder / "frames/depth"), "--camera", camera]
    done = subprocess.run(
        [*python, str(folder / "bundle/run.py"), *arguments, "--out", str(folder / "out")],
        capture_output=True, text=True, check=False, env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for index in range(2):
        rgb = np.asarray(Image.open(folder / f"frames/rgb/{index}.png"))
        depth = np.asarray(Image.open(folder / f"frames/depth/{index}.png"))
        wanted = segmenter(rgb, depth, room.camera, depth_unit="mm")
        found = np.asarray(Image.open(folder / f"out/label/{index}.png"))
        assert (found == wanted.label_files.encode(wanted.labels)).mean() > 0.998
        assert len(np.unique(found)) > 1
        wanted.save(folder / "wanted", str(index))
        for file in (f"color/{index}.png", f"overlay/{index}.png"):
            mine, theirs = (np.asarray(Image.open(folder / place / file)).astype(int) for place in ("out", "wanted"))
            assert (np.abs(mine - theirs).max(2) > 1).mean() < 2e-3
        sizes = [(folder / place / f"cloud/{index}.ply").stat().st_size for place in ("out", "wanted")]
        assert sizes[0] == sizes[1]
    keys = [json.loads((folder / place / "classes.json").read_text()) for place in ("out", "wanted")]
    assert keys[0] == keys[1]


def test_the_bundle_runs_where_there_is_no_pytorch(tmp_path: Path) -> None:
    segmenter = bundle_of(DEPTH, tmp_path)
    assert sorted(file.name for file in (tmp_path / "bundle").iterdir()) == ["labels.json", "model.onnx", "run.py"]
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'rgbdseg', 'timm', 'onnx'):\n    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    check_bundle([sys.executable, str(starter)], segmenter, tmp_path, DEPTH)


def test_a_bundle_replaces_its_own_files_alone(tmp_path: Path) -> None:
    bundle_of(DEPTH, tmp_path)
    for name in ("labels.json", "run.py"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UsageError, match=f"{name} is there already and of no bundle; choose another folder"):
            write_bundle(tmp_path / "bundle" / "model.onnx", folder)
        assert [(file.name, file.read_text()) for file in folder.iterdir()] == [(name, "mine")]
    write_bundle(tmp_path / "bundle" / "model.onnx", tmp_path / "bundle")


def test_the_program_of_the_bundle_replaces_its_own_files_alone(tmp_path: Path) -> None:
    run = importlib.import_module("rgbdseg.export.run")  # needs onnxruntime

    def labeled(values: LabelValues) -> Any:
        return run.SegmentedFrame(
            np.zeros((2, 3), np.uint8), np.ones((2, 3), np.float32), ABC.classes, ABC.palette,
            np.zeros((2, 3, 3), np.uint8), None, None, "a", LabelFiles.of_classes(ABC, values).to_dict(),
        )  # fmt: skip

    for _ in range(2):
        labeled(VALUES).save(tmp_path / "own")
    assert sorted(file.name for file in (tmp_path / "own").rglob("*.*")) == ["a.png"] * 3 + ["classes.json"]
    with pytest.raises(run.InputError, match=r"classes\.json is of other classes"):
        labeled(LabelValues((1, 2, 3), 0)).save(tmp_path / "own")
    (tmp_path / "rec" / "color").mkdir(parents=True)
    (tmp_path / "rec" / "color" / "a.png").write_text("mine")
    with pytest.raises(run.InputError, match=r"rec holds files in color/ and no classes\.json"):
        labeled(VALUES).save(tmp_path / "rec")
    assert (tmp_path / "rec" / "color" / "a.png").read_text() == "mine"


@pytest.mark.parametrize("unit", ["0", "-1", "nan", "inf", "1e-300", "1e9", "inch", "", 0, -1.0, [1]])
def test_units_that_the_program_of_the_bundle_refuses(unit: Any) -> None:
    run = importlib.import_module("rgbdseg.export.run")
    depth = np.full((2, 3), 1500, np.uint16)
    with pytest.raises(run.InputError, match=r"depth unit '.*' is not understood; expected m, cm, mm or the meters"):
        run.to_meters(depth, unit, depth.shape, "a")
    for good in ("mm", "0.001", 0.001):
        assert run.to_meters(depth, good, depth.shape, "a").max() == np.float32(1.5)
    assert run.to_meters(depth / 1000, None, depth.shape, "a").max() == np.float32(1.5)


def test_the_class_of_the_bundle(tmp_path: Path) -> None:
    segmenter = bundle_of(DEPTH, tmp_path, depth_unit=MILLIMETERS, whole_numbers=True)
    room = room_frames(SIZE, 1, DEPTH)[0][0]
    assert room.depth_m is not None
    assert room.camera is not None
    rgb, depth = room.rgb.permute(1, 2, 0).numpy(), room.depth_m[0].numpy()
    np.savez(tmp_path / "frame.npz", rgb=rgb, depth=depth, camera=room.camera.as_tuple())
    program = BLOCKED + (
        "import numpy as np, run\n"
        "frame = np.load(sys.argv[2])\n"
        "seg = run.Segmenter()\n"
        "result = seg(frame['rgb'], frame['depth'], frame['camera'])\n"
        "print(result.shares)\n"
        "xyz, colors, labels = result.point_cloud()\n"
        "np.savez(sys.argv[3], labels=result.labels, confidence=result.confidence, overlay=result.overlay(), xyz=xyz,\n"
        "         mask=result.mask('b'))\n"
        "for wrong in (lambda: seg(frame['rgb'][:8], None), lambda: seg(frame['rgb']),\n"
        "              lambda: seg(frame['rgb'], frame['depth'].astype(np.uint16)),\n"
        "              lambda: seg(frame['rgb'], frame['depth'][:5], depth_unit='mm'), lambda: result.mask('d')):\n"
        "    try:\n        wrong()\n    except run.InputError as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "bundle"), str(tmp_path / "frame.npz"), str(tmp_path / "o.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = segmenter(rgb, np.rint(1000 * depth).astype(np.uint16), room.camera, depth_unit="mm")
    found = np.load(tmp_path / "o.npz")
    assert (found["labels"] == wanted.labels).mean() > 0.999
    np.testing.assert_allclose(found["confidence"], wanted.confidence, atol=1e-3)
    assert np.array_equal(found["mask"], found["labels"] == 1)
    xyz_cam_m = wanted.point_cloud()[0]
    assert found["xyz"].shape == xyz_cam_m.shape
    np.testing.assert_allclose(found["xyz"], xyz_cam_m, atol=2e-3)
    said = done.stdout.splitlines()[1:]
    wanted_words = ("graph is for 32x48", "needs depth", "unit is not known", "register depth", "unknown class 'd'")
    assert len(said) == len(wanted_words)
    assert all(words in line for words, line in zip(wanted_words, said, strict=True)), said


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZE, None])
def test_hha_inside_a_graph(tmp_path: Path, size: tuple[int, int] | None) -> None:
    """With holes in the depth, whose edges have windows that fix no plane."""
    spec = InputSpec((rgb_stream(), hha_stream()), needs_camera=True, size_divisor=16)
    segmenter, found = exported(spec, tmp_path / "graph.onnx", size=size)
    assert found.report.agreement > 0.9995
    graph = rgbdseg.load(tmp_path / "graph.onnx")
    for seed in range(3):
        room = room_frames(SIZE if size else (50, 70), 1, spec, first_seed=20 + seed)[0][0]
        assert room.raw_depth_m is not None
        sensed = room.replace(depth_m=room.raw_depth_m, raw_depth_m=None)
        assert (sensed.depth_m == 0).any()  # type: ignore[union-attr]
        assert (graph.segment(sensed).labels == segmenter.segment(sensed).labels).mean() > 0.999


@pytest.mark.slow
def test_the_bundle_in_a_fresh_environment(tmp_path: Path) -> None:
    """HHA inside, and nothing but numpy, onnxruntime and pillow outside."""
    spec = InputSpec((rgb_stream(), hha_stream()), needs_camera=True, size_divisor=16)
    segmenter = bundle_of(spec, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "onnxruntime", "pillow"], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode != 0
    check_bundle([str(python)], segmenter, tmp_path, spec)


# --- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = {"encoder": "test_resnet", "inputs": ["rgb"], "decoder_channels": 16, "auxiliary_channels": 16}
    model = create_model("deeplabv3plus_resnet18", 3, **options)
    file = tmp_path_factory.mktemp("model") / "model.safetensors"
    facts = ModelFacts("deeplabv3plus_resnet18", options, model.input_spec, ABC)
    save_bundle(facts, model.state_dict(), file)
    return file


def test_the_command(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "graph.onnx"
    assert main(["export", str(checkpoint), str(out), "--size", "32", "48", "--frames", "2"]) == 0
    said = capsys.readouterr().out
    assert "fp32 against PyTorch: " in said
    assert "equal labels on 2 frames" in said
    assert f"trtexec --onnx={out}" in said
    assert OnnxRunner(out).output_names == ("labels", "confidence")
    assert main(["export", str(checkpoint), str(out)]) == 1
    assert "exists; choose another name or add --force" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--bundle", str(tmp_path / "bundle"), "--size", "32", "48"]) == 0
    assert (tmp_path / "bundle/run.py").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give [MODEL] and either OUT or --bundle DIR"),
        (["MODEL"], "is no file to write a graph to; expected OUT to end in .onnx, .pt2, .xml"),
        (["MODEL", "a.onnx", "--bundle", "b"], "give [MODEL] and either OUT or --bundle DIR"),
        (["--table", "a.html"], "does not end in .md"),
        (["MODEL", "a.onnx", "--size", "4"], "--size 4 is not understood; expected a height and a width, or open"),
        (["MODEL", "a.onnx", "--format", "torch-export"], "does not end in .pt2"),
        (["MODEL", "a.onnx", "--frames", "0"], "--frames is 0; expected 1 at least"),
        (["MODEL", "a.onnx", "--depth-unit", "inch"], "depth unit 'inch' is not understood"),
        (["MODEL", "a.pt2", "--precision", "fp16", "--size", "32", "32"], "a program of torch.export keeps fp32"),
    ],
)
def test_what_the_command_refuses(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {"MODEL": str(checkpoint), "a.onnx": str(tmp_path / "a.onnx"), "a.pt2": str(tmp_path / "a.pt2")}
    assert main(["export", *(places.get(one, one) for one in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
