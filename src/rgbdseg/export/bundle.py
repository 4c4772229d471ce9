"""A folder that labels frames without PyTorch: the graph, what it is, and one readable program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rgbdseg.errors import UsageError
from rgbdseg.export.onnx_graph import OnnxRunner
from rgbdseg.files import atomic_path, is_replaceable, write_text
from rgbdseg.outputs import LabelFiles
from rgbdseg.weights.facts import ModelFacts

GRAPH, FACTS, PROGRAM = "model.onnx", "labels.json", "run.py"
_FACTS_BEGIN = b'{\n  "model": '


def write_bundle(graph: Path, folder: Path) -> list[Path]:
    """Write the graph, labels.json and run.py into a folder, which is created.

    Args:
        graph: an .onnx file that `export_model` wrote; it may be the one of the folder already.
        folder: an earlier bundle in it is replaced.

    Raises:
        UsageError: where something else is in the folder under one of these names.
        WriteError: when a file cannot be written.
    """
    program = Path(__file__).with_name(PROGRAM).read_text(encoding="utf-8")
    check_bundle_folder(folder)
    facts = OnnxRunner(graph).facts()
    label_set, plan = facts["model"]["label_set"], facts["plan"]
    model = ModelFacts.from_dict(facts["model"])
    described = {
        "model": facts["model"]["model_name"],
        "label_set": label_set["name"],
        "names": label_set["classes"],
        "palette": label_set["palette"],
        "label_files": LabelFiles.of_classes(model.label_set, model.label_values, model.dataset).to_dict(),
        **{key: plan[key] for key in ("inputs", "outputs", "size", "depth_unit", "whole_numbers")},
        "precision": facts["precision"],
        "parity": facts["parity"],
        "versions": facts["versions"],
    }
    if graph.resolve() != (folder / GRAPH).resolve():
        with atomic_path(folder / GRAPH) as temporary:
            shutil.copyfile(graph, temporary)
    write_text(folder / FACTS, json.dumps(described, indent=2) + "\n")
    write_text(folder / PROGRAM, program)
    return [folder / name for name in (GRAPH, FACTS, PROGRAM)]


def check_bundle_folder(folder: Path) -> None:
    """Raise UsageError where `write_bundle` would replace files that are not of a bundle."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; expected a folder to write to")
    first_line = Path(__file__).with_name(PROGRAM).read_bytes().partition(b"\n")[0]
    for name, begins in ((FACTS, _FACTS_BEGIN), (PROGRAM, first_line)):
        if not is_replaceable(folder / name, begins):
            raise UsageError(f"{folder / name} is there already and of no bundle; choose another folder")
