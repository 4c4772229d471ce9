"""From the stages of a graph to one ONNX model, and what is done to such a model afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rgbdseg.depth import DepthUnit
from rgbdseg.errors import CheckpointError, RGBDSegError, UsageError
from rgbdseg.export.answer import AnswerStage
from rgbdseg.export.open_sizes import traceable_open_sizes
from rgbdseg.export.plan import GraphPlan, Size
from rgbdseg.export.stages import HHAStage, InputStage, NetworkStage, TappedStage, parts_of
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.models._base import SegmentationModel

OPSET = 18
METADATA_KEY = "rgbdseg"
PART = "part:"
_OPEN_SIZE = (96, 128)  # of the example that a graph with open sizes is traced with
_LIMIT_BYTES = 2**31  # of a Protocol Buffers message

Array = np.ndarray[Any, Any]


class ExportError(RGBDSegError):
    """A model that cannot be exported, or whose graph does not keep its numbers."""


@dataclasses.dataclass(frozen=True)
class GraphStages:
    """The stages as ONNX models, before they are joined.

    Args:
        before: what turns the inputs of the graph into those of the network, one or two models.
        network: the network; its outputs are ``logits`` and then a tensor ``part:NAME`` for each of ``parts``.
        after: from logits to the outputs.
        parts: modules of the network in the order in which they are done.
        free_batch: whether the graph takes any number of frames.
    """

    before: tuple[Any, ...]
    network: Any
    after: Any
    parts: tuple[str, ...]
    free_batch: bool


def require_onnx() -> None:
    """Raise UsageError, with the remedy, unless what exports and runs ONNX graphs is installed."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise UsageError(
                f"{name} is not installed, which exported graphs need: pip install 'rgbdseg[export]'"
            ) from error


def make_stages(model: SegmentationModel, plan: GraphPlan) -> GraphStages:
    """Trace all stages of a model.

    Raises:
        ExportError: for a model that PyTorch cannot trace or ONNX cannot express, with the reason.
    """
    import onnx  # noqa: PLC0415

    size = plan.size or _OPEN_SIZE
    open_sizes = plan.size is None
    given = {name: torch.from_numpy(values) for name, values in plan.example(2, size).items()}
    before: list[Any] = []
    if plan.needs_hha:
        made = _hha_bytes((plan.depth_unit, plan.hha), str(given["depth"].numpy().dtype), size, open_sizes)
        before.append(onnx.load_model_from_string(made))
        given["hha"] = torch.zeros(2, 3, *size, dtype=torch.uint8)
    inputs = InputStage(plan)
    arguments = {name: given[name] for name in inputs.input_names}
    before.append(_traced(inputs, arguments, inputs.output_names, open_sizes))
    network = NetworkStage(model, plan.spec.names, plan.spec.needs_camera)
    with torch.no_grad():
        images = dict(zip(inputs.output_names, inputs(*arguments.values()), strict=True))
        logits = network(*images.values())
    parts = parts_of(model, functools.partial(network, *images.values()))
    names = ("logits", *(PART + part for part in parts))
    with traceable_open_sizes(model) if open_sizes else contextlib.nullcontext():
        traced = _traced(TappedStage(network, parts), images, names, open_sizes, may_fix_batch=True)
    answer = AnswerStage(plan)
    after = _traced(answer, {"logits": logits, "rgb": given["rgb"]}, answer.output_names, open_sizes)
    free_batch = not _first_is_fixed(traced.graph.input[0])
    return GraphStages(tuple(before), traced, after, tuple(parts), free_batch)


def join(models: Sequence[Any], outputs: Sequence[str]) -> Any:
    """Return one model from several, where equal names of inputs and outputs are the same tensor.

    Args:
        models: in the order in which they run.
        outputs: names of tensors that the joined model returns.
    """
    import onnx  # noqa: PLC0415

    joined = onnx.ModelProto(ir_version=max(model.ir_version for model in models), producer_name="rgbdseg")
    joined.graph.name = "rgbdseg"
    made: dict[str, Any] = {}
    opsets: dict[str, int] = {}
    for index, given in enumerate(models):
        model = onnx.ModelProto()
        model.CopyFrom(given)
        shared = {one.name for one in (*model.graph.input, *model.graph.output)}
        _prefix_names(model.graph, f"stage{index}/", shared)
        known = {one.name for one in joined.graph.input}
        joined.graph.input.extend(one for one in model.graph.input if one.name not in known and one.name not in made)
        joined.graph.node.extend(model.graph.node)
        joined.graph.initializer.extend(model.graph.initializer)
        joined.graph.value_info.extend(model.graph.value_info)
        made.update({one.name: one for one in model.graph.output})
        for one in model.opset_import:
            opsets[one.domain] = max(opsets.get(one.domain, 0), one.version)
    joined.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items())
    joined.graph.output.extend(made[name] for name in outputs)
    _remove_unused(joined.graph)
    return joined


def _remove_unused(graph: Any) -> None:
    """Take out the nodes and constants that no output needs: runtimes may compute them all the same."""
    made_by = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    ahead = {one.name for one in graph.output}
    while ahead:
        needed |= ahead
        ahead = set().union(*(_names_used(made_by[name]) for name in ahead if name in made_by)) - needed
    for index in reversed(range(len(graph.node))):
        if not needed.intersection(graph.node[index].output):
            del graph.node[index]
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]


def _names_used(node: Any) -> set[str]:
    """Return the tensors that a node takes, those that graphs inside of it take from outside included."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names |= {one.name for one in inner.output}
            for one in inner.node:
                names |= _names_used(one)
    return names


def _prefix_names(graph: Any, prefix: str, shared: set[str]) -> None:
    """Give all tensors and nodes of a graph, and of those inside its nodes, a prefix, but for the ``shared`` ones."""

    def renamed(name: str) -> str:
        return name if not name or name in shared else prefix + name

    for one in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        one.name = renamed(one.name)
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _prefix_names(inner, prefix, shared)


def with_metadata(model: Any, facts: Mapping[str, Any]) -> Any:
    """Store facts, JSON, in a model's ``metadata_props``."""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(facts)
    return model


def with_outputs(graph: bytes, names: Sequence[str]) -> bytes:
    """Return a graph that gives fewer of its outputs, without what only the others need."""
    import onnx  # noqa: PLC0415

    model = onnx.load_model_from_string(graph)
    outputs = {one.name: one for one in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(outputs[name] for name in names)
    _remove_unused(model.graph)
    return serialized(model)


def serialized(model: Any) -> bytes:
    """Return a model as the bytes of its file; raises ExportError for one that is too large for a single file."""
    if model.ByteSize() >= _LIMIT_BYTES:
        raise ExportError(f"the graph has {model.ByteSize() / 2**30:.1f} GiB; a single ONNX file holds less than 2")
    return bytes(model.SerializeToString())


class OnnxRunner:
    """A graph run by ONNX Runtime.

    Args:
        model: a file, or the bytes of one.
        device: ``cpu``, or ``cuda`` where the installed ONNX Runtime has it.
        threads: 0 leaves it to ONNX Runtime.
    """

    def __init__(self, model: Path | bytes, *, device: str = "cpu", threads: int = 0) -> None:
        require_onnx()
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = [*(["CUDAExecutionProvider"] if device.startswith("cuda") else []), "CPUExecutionProvider"]
        available = onnxruntime.get_available_providers()
        if providers[0] not in available:
            raise UsageError(f"this ONNX Runtime has no {providers[0]}; install onnxruntime-gpu, or take the CPU")
        try:
            self.session = onnxruntime.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers
            )
        except Exception as error:  # its own exceptions have no common class
            name = "the graph" if isinstance(model, bytes) else str(model)
            raise CheckpointError(f"ONNX Runtime cannot read {name}: {' '.join(str(error).split())[:300]}") from error
        self.output_names = tuple(one.name for one in self.session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return arrays by name; all outputs unless told which."""
        names = list(self.output_names if outputs is None else outputs)
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))

    def facts(self) -> dict[str, Any]:
        """Return what `with_metadata` stored; raises CheckpointError for a file of another program."""
        found = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if found is None:
            raise CheckpointError(
                "the graph does not say what it is; write it with rgbdseg export MODEL OUT.onnx (in Python: "
                "rgbdseg.export.export.export_model)"
            )
        facts: dict[str, Any] = json.loads(found)
        return facts


@functools.lru_cache(maxsize=8)
def _hha_bytes(stage_facts: tuple[DepthUnit, HHAParameters], depth_type: str, size: Size, open_sizes: bool) -> bytes:
    """Return the stage that computes HHA; it takes long to trace, and many models need the same."""
    unit, parameters = stage_facts
    depth = torch.from_numpy(np.full((2, *size), 100, dtype=depth_type))
    camera = torch.tensor([[100.0, 100.0, size[1] / 2, size[0] / 2]] * 2, dtype=torch.float64)
    stage = HHAStage(unit, parameters)
    made = _traced(stage, {"depth": depth, "camera": camera}, ("hha",), open_sizes)
    return bytes(made.SerializeToString())


def _traced(
    stage: nn.Module,
    arguments: Mapping[str, Tensor],
    output_names: Sequence[str],
    open_sizes: bool,
    may_fix_batch: bool = False,
) -> Any:
    """Return a stage as an ONNX model with free sizes as far as asked for.

    Args:
        stage: in evaluation mode.
        arguments: of two frames by the name of the argument.
        output_names: of what it returns.
        open_sizes: height and width are free, besides the number of frames.
        may_fix_batch: where the number of frames cannot be free, it is 1.

    Raises:
        ExportError: for what PyTorch cannot trace or ONNX cannot express.
    """
    problem: Exception | None = None
    for free_batch in (True, False) if may_fix_batch else (True,):
        try:
            made = _to_onnx(stage, arguments, output_names, open_sizes=open_sizes, free_batch=free_batch)
        except Exception as error:  # whatever the tracer meets in a model
            problem = problem or error
            continue
        if not free_batch or not any(_first_is_fixed(one) for one in made.graph.input):
            return made
    assert problem is not None
    raise ExportError(f"{type(stage).__name__} cannot be exported: {_reason(problem)}") from problem


def trace(stage: nn.Module, arguments: Mapping[str, Tensor], open_sizes: bool) -> torch.export.ExportedProgram:
    """Return a stage as a program of PyTorch; see `_traced`."""
    with traceable_open_sizes(stage) if open_sizes else contextlib.nullcontext():
        try:
            return _program(stage, arguments, open_sizes, free_batch=True)
        except Exception:  # whatever the tracer meets in a model; it may be the number of frames
            return _program(stage, arguments, open_sizes, free_batch=False)


def _program(
    stage: nn.Module, arguments: Mapping[str, Tensor], open_sizes: bool, free_batch: bool
) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            stage.eval(),
            _of_one_frame(arguments, free_batch),
            dynamic_shapes=_free_axes(stage, arguments, open_sizes, free_batch),
            strict=False,
        )


def _to_onnx(
    stage: nn.Module,
    arguments: Mapping[str, Tensor],
    output_names: Sequence[str],
    *,
    open_sizes: bool,
    free_batch: bool,
) -> Any:
    import onnx.inliner  # noqa: PLC0415

    settings: dict[str, Any] = {
        "dynamo": True,
        "opset_version": OPSET,
        "input_names": list(arguments),
        "output_names": list(output_names),
        "verbose": False,
    }
    with torch.no_grad(), warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            stage.eval(),
            _of_one_frame(arguments, free_batch),
            dynamic_shapes=_free_axes(stage, arguments, open_sizes, free_batch),
            optimize=False,
            **settings,
        )
        assert made is not None
        try:
            made.optimize()
        except Exception:  # some graphs are beyond the optimizer, which is not needed
            program = made.exported_program
            assert program is not None
            made = torch.onnx.export(program, optimize=False, **settings)
            assert made is not None
    return onnx.inliner.inline_local_functions(made.model_proto)


def _of_one_frame(arguments: Mapping[str, Tensor], free_batch: bool) -> tuple[Tensor, ...]:
    """Return the arguments, of half of the two frames where their number is fixed."""
    return tuple(one if free_batch else one[: len(one) // 2] for one in arguments.values())


def _free_axes(
    stage: nn.Module, arguments: Mapping[str, Tensor], open_sizes: bool, free_batch: bool
) -> tuple[Any, ...]:
    automatic = torch.export.Dim.AUTO
    shapes = []
    for name, one in arguments.items():
        axes = [0] if free_batch else []
        if open_sizes and one.ndim >= 3:
            # What comes from outside has its channels last, if any; what passes between the stages has them first.
            channels_first = one.ndim == 4 and (name in ("hha", "logits") or name.startswith("network_"))
            axes += [2, 3] if channels_first else [1, 2]
        shapes.append(dict.fromkeys(axes, automatic))
    variadic = stage.forward.__code__.co_flags & inspect.CO_VARARGS
    return (tuple(shapes),) if variadic else tuple(shapes)


def _first_is_fixed(value: Any) -> bool:
    return bool(value.type.tensor_type.shape.dim[0].HasField("dim_value"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the advice of converters away from the reader."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """Return what is at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:250]}"
