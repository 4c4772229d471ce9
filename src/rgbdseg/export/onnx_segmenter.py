"""An exported graph behind the same call as a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgbdseg.device import choose_device
from rgbdseg.errors import CheckpointError, DataError, UsageError
from rgbdseg.export.onnx_graph import OnnxRunner, require_onnx
from rgbdseg.export.parity import graph_inputs, plain_frame
from rgbdseg.export.plan import GRAPH_FORMAT, GraphPlan
from rgbdseg.inference import Segmentation
from rgbdseg.sample import RGBDSample
from rgbdseg.segmented_frame import SegmentedFrame
from rgbdseg.segmenter import Segmenter, no_confidence
from rgbdseg.weights.facts import ModelFacts


class OnnxSegmenter(Segmenter):
    """A graph that `rgbdseg export` wrote, as a `Segmenter`; `rgbdseg.load` makes one from an .onnx file.

    HHA is computed inside, from the depth and camera of each frame.

    Args:
        runner: the graph.
        device: of the frames that it is given.
    """

    def __init__(self, runner: OnnxRunner, device: torch.device) -> None:
        facts = runner.facts()
        if facts.get("format") != GRAPH_FORMAT:
            raise CheckpointError(f"the graph has format {facts.get('format')!r}; this version reads {GRAPH_FORMAT}")
        model = ModelFacts.from_dict(facts["model"])
        self.facts = facts
        self.plan = GraphPlan.from_dict(facts["plan"])
        self.runner = runner
        self.device = device
        self.label_set = model.label_set
        self.input_spec = self.plan.spec
        self.protocol = self.plan.protocol
        self.hha = self.plan.hha
        self.name = model.model_name
        self.label_values, self.dataset = model.label_values, model.dataset
        self.autocast_dtype = None  # whatever the graph computes in, it is part of it
        self.training_size = None  # the graph takes images of its own size alone, or all as they are

    def segment(self, sample: RGBDSample, *, with_confidence: bool = True) -> SegmentedFrame:
        """Label a frame that is given as a sample.

        Args:
            sample: the frame.
            with_confidence: see `Segmenter.segment`.

        Raises:
            DataError: where the frame lacks what the graph takes, or has another size than the graph.
        """
        outputs = self._outputs(sample, ["labels", "confidence"] if with_confidence else ["labels"])
        confidence = outputs["confidence"][0] if with_confidence else no_confidence(sample.size)
        return self.labeled_frame(sample, outputs["labels"][0], confidence)

    def score(self, sample: RGBDSample) -> Segmentation:
        """Return the scores of every class.

        Raises:
            UsageError: for a graph that was exported without scores.
        """
        if not self.plan.scores:
            raise UsageError("the graph returns labels and confidence only; export it with scores")
        return Segmentation(torch.from_numpy(np.log(self._outputs(sample)["scores"][0])))

    def prepare(self, sample: RGBDSample) -> RGBDSample:
        """Return the sample as it is: the graph computes all that it needs."""
        return sample

    def _outputs(self, sample: RGBDSample, names: Sequence[str] | None = None) -> dict[str, Any]:
        if self.plan.needs_hha:
            for name in ("hha", "raw_depth_m"):
                if sample.raster(name) is not None:
                    raise DataError(
                        f"frame '{sample.sample_id}' comes with {name}, which the graph does not take: it computes HHA "
                        "from depth; leave it out"
                    )
        return self.runner(graph_inputs([plain_frame(sample, self.plan)], self.plan), names)


def load_onnx(file: Path, device: str | torch.device = "auto") -> OnnxSegmenter:
    """Open a graph.

    Args:
        file: an .onnx file that `rgbdseg export` wrote.
        device: ``auto`` takes a GPU where this ONNX Runtime has one.

    Raises:
        CheckpointError: for a file of another program.
        UsageError: where ONNX Runtime is not installed.
    """
    require_onnx()
    import onnxruntime  # noqa: PLC0415

    if device == "auto":
        device = "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"
    # Arrays are handed over on the CPU, wherever the graph runs.
    return OnnxSegmenter(OnnxRunner(file, device=str(device)), choose_device("cpu"))
