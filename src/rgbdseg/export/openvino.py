"""The same graph for OpenVINO, where it is installed."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rgbdseg.errors import UsageError
from rgbdseg.export.onnx_graph import METADATA_KEY, Array, ExportError
from rgbdseg.files import atomic_path


def require_openvino() -> None:
    """Raise UsageError, with the remedy, unless OpenVINO is installed."""
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore]  # noqa: F401, PLC0415
    except ImportError as error:
        raise UsageError(
            "openvino is not installed, which .xml needs: pip install openvino; or choose .onnx"
        ) from error


class OpenVINORunner:
    """A graph run by OpenVINO on the CPU, in float32 but for what the graph itself computes in fewer bits.

    Args:
        model: the bytes of an ONNX graph.
        threads: 0 leaves it to OpenVINO.

    Raises:
        UsageError: where OpenVINO is not installed.
        ExportError: for a graph that it cannot read.
    """

    def __init__(self, model: bytes, *, threads: int = 0) -> None:
        require_openvino()
        import openvino  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.onnx"
            file.write_bytes(model)
            try:
                self.model = openvino.convert_model(file)
                self.compiled = openvino.Core().compile_model(self.model, "CPU", settings)
            except Exception as error:  # its own exceptions have no common class
                raise ExportError(f"OpenVINO cannot read the graph: {_reason(str(error))}") from error
        self.output_names = tuple(one.get_any_name() for one in self.compiled.outputs)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return arrays by name."""
        found = self.compiled(dict(inputs))
        return {name: found[name] for name in self.output_names}


def _reason(message: str) -> str:
    """Return what a long message of OpenVINO comes down to: the operators that it does not know, or its beginning."""
    lists = re.findall(r"(?:No conversion rule found for operations|Conversion is failed for): (.*)", message)
    names = [name.split("::")[-1] for one in lists for name in re.sub(r"-\d+", "", one).strip().split(", ")]
    return f"it cannot convert {', '.join(dict.fromkeys(names))}" if names else " ".join(message.split())[:300]


def write_openvino(model: bytes, metadata: Mapping[str, Any], out: Path) -> None:
    """Write an ONNX graph as OpenVINO's .xml and .bin, with its weights as they are.

    Args:
        model: the bytes of the ONNX graph.
        metadata: is stored in the .xml as ``rt_info``.
        out: the .xml; the .bin lies beside it.
    """
    import openvino  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    graph = OpenVINORunner(model).model
    graph.set_rt_info(json.dumps(metadata), METADATA_KEY)
    with atomic_path(out) as temporary:
        weights = temporary.with_suffix(".bin")
        try:
            openvino.save_model(graph, temporary, compress_to_fp16=False)
            weights.replace(out.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)
