"""The same graph for OpenVINO, where it is installed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rgbdseg.errors import UsageError
from rgbdseg.export.onnx_graph import METADATA_KEY, Array, ExportError, serialized
from rgbdseg.export.parity import ParityBar, ParityReport, compare
from rgbdseg.export.plan import GraphPlan
from rgbdseg.files import atomic_path
from rgbdseg.segmenter import Segmenter

if TYPE_CHECKING:
    from rgbdseg.export.export import Frames


def write_openvino(
    graph: Any,
    metadata: Mapping[str, Any],
    out: Path,
    *,
    segmenter: Segmenter,
    plan: GraphPlan,
    frames: Frames,
    bar: ParityBar,
) -> ParityReport:
    """Write an ONNX graph as OpenVINO's .xml and .bin, once OpenVINO has been seen to keep the model's numbers.

    Raises:
        UsageError: where OpenVINO is not installed.
        ExportError: for a graph that it cannot read, or whose numbers it does not keep.
    """
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "openvino is not installed, which .xml needs: pip install openvino; or choose .onnx"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        file.write_bytes(serialized(graph))
        try:
            model = openvino.convert_model(file)
            compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot read the graph: {' '.join(str(error).split())[:300]}") from error

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            outputs = compiled(dict(inputs))
            return {name: outputs[name] for name in (*plan.outputs, "log_scores")}

        report = compare(segmenter, run, plan, frames.compared, bar=bar, label_set=frames.label_set)
        if not report.passed:
            raise ExportError(f"not written, for OpenVINO does not keep the model's numbers: {report.describe()}")
        model.set_rt_info(json.dumps(metadata), METADATA_KEY)
        weights = out.with_suffix(".bin")
        with atomic_path(out) as temporary:
            openvino.save_model(model, temporary, compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(weights)
    return report
