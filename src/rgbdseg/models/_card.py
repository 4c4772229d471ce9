"""The facts of a published method that no code can measure: the generated tables of methods are made from them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedResult:
    """One published number.

    Args:
        dataset: name and number of classes, such as ``NYU Depth V2, 40``.
        model: name in the registry, or the encoder where the registry has no such model.
        mean_iou: in percent.
        protocol: what is known of scales, flips and selection.
        pixel_accuracy: in percent, where it was published.
    """

    dataset: str
    model: str
    mean_iou: float
    protocol: str = ""
    pixel_accuracy: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MethodCard:
    """What a reader of a table wants to know of a method.

    Args:
        method: its name in the literature.
        year: of the paper.
        paper: venue and arXiv number.
        input: what it is fed **at test time**, such as ``RGB + HHA``.
        code: the published code and its license, or ``none``.
        results: published numbers.
        exact: what equals the published code or paper.
        ours: what the publication leaves open or we do otherwise.
    """

    method: str
    year: int
    paper: str
    input: str
    code: str
    results: tuple[PublishedResult, ...]
    exact: str
    ours: str
