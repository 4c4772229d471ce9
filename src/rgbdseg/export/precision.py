"""The network of a graph in fewer bits; what comes before and after it keeps its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rgbdseg.export.onnx_graph import PART, Array, ExportError, quiet

PRECISIONS = ("fp32", "fp16", "int8")


def in_half(network: Any) -> Any:
    """Return a network that computes in float16 between float32 inputs and outputs.

    Raises:
        ExportError: when the converter cannot.
    """
    from onnxruntime.transformers import float16  # noqa: PLC0415

    parts = _without_parts(network)
    try:
        with quiet():
            converted = float16.convert_float_to_float16(network, keep_io_types=True, disable_shape_infer=False)
    except Exception as error:  # whatever the converter meets in a graph
        raise ExportError(f"the network cannot be turned into float16: {type(error).__name__}: {error}") from error
    converted.graph.output.extend(parts)
    return converted


def in_eight_bits(network: Any, frames: Sequence[Mapping[str, Array]]) -> Any:
    """Return a network whose convolutions and matrix products take 8-bit integers.

    Static quantization of ONNX Runtime: weights per channel, activations by their smallest and largest value on frames.

    Args:
        network: float32.
        frames: its inputs by name.

    Raises:
        ExportError: when ONNX Runtime cannot.
    """
    import onnx  # noqa: PLC0415
    from onnxruntime import quantization  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    class Reader(quantization.CalibrationDataReader):
        """Hands out the frames one by one."""

        def __init__(self) -> None:
            self.left = iter(frames)

        def get_next(self) -> Any:
            """Return the next frame, None after the last."""
            found = next(self.left, None)
            return None if found is None else dict(found)

    parts = _without_parts(network)
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            plain, ready, done = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "done.onnx"))
            onnx.save(network, plain)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantization.quantize_static(
                ready,
                done,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
            )
            quantized = onnx.load(done)
    except Exception as error:  # whatever ONNX Runtime meets in a graph
        raise ExportError(f"the network cannot be quantized: {type(error).__name__}: {error}") from error
    kept = {name for node in quantized.graph.node for name in node.output}
    quantized.graph.output.extend(part for part in parts if part.name in kept)
    return quantized


def _without_parts(network: Any) -> list[Any]:
    """Take the outputs of parts away from a network: the tensors stay, and hinder no conversion.

    They are returned by name alone, since their type may change.
    """
    import onnx  # noqa: PLC0415

    parts = [one for one in network.graph.output if one.name.startswith(PART)]
    for one in parts:
        network.graph.output.remove(one)
    return [onnx.ValueInfoProto(name=one.name) for one in parts]
