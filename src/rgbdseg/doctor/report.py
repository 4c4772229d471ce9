"""The result of checking a dataset, as values, as JSON and as lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rgbdseg.doctor.inspect_frame import DepthStatistics

_EXAMPLES = 5
_PERCENTILES = (1, 50, 99)


@dataclasses.dataclass
class Finding:
    """One kind of fault: how often it was found, and the first few places."""

    kind: str
    count: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        times = f" ({self.count})" if self.count > 1 else ""
        return f"{self.kind}{times}: {'; '.join(self.examples)}{more}"


class Findings:
    """Collects faults by kind; however many there are, only the first few of each kind are kept in words."""

    def __init__(self) -> None:
        self._problems: dict[str, Finding] = {}
        self._warnings: dict[str, Finding] = {}

    def problem(self, kind: str, text: str) -> None:
        """Note something that is wrong."""
        _note(self._problems, kind, text)

    def warning(self, kind: str, text: str) -> None:
        """Note something that may be meant."""
        _note(self._warnings, kind, text)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is wrong, in the order it was found."""
        return tuple(self._problems.values())

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What may be meant, in the order it was found."""
        return tuple(self._warnings.values())


@dataclasses.dataclass(frozen=True)
class ClassCount:
    """Pixels of one class, and frames in which it occurs."""

    index: int
    name: str
    pixels: int
    frames: int


@dataclasses.dataclass(frozen=True)
class DepthSummary:
    """Depth readings of the dataset: percentiles in meters (None without readings) and the share without a reading.

    Args:
        histogram: (from, to, share of the readings), meters, bins of equal ratio over nearly all readings.
    """

    percentiles_m: Mapping[int, float | None]
    missing_share: float
    histogram: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def of(cls, statistics: DepthStatistics) -> DepthSummary:
        """Summarize collected statistics."""
        percentiles_m = {p: statistics.percentile_m(p) for p in _PERCENTILES}
        return cls(percentiles_m, statistics.missing_share, statistics.coarse_histogram())


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What a prepared tree holds, and what is wrong with it.

    problems make training or scores wrong; warnings may be meant.

    Args:
        sizes: "480x640" -> frames.
        void_share: 0..1 of the label pixels, None without labels.
        depth: by raster, "depth_m" and "raw_depth_m".
        leaks: ids of the first few pairs of frames that lie in different splits and show the same picture.
    """

    root: str
    name: str
    recognized_as: str
    splits: Mapping[str, int]
    frames_read: int
    sizes: Mapping[str, int]
    classes: tuple[ClassCount, ...]
    void_share: float | None
    depth: Mapping[str, DepthSummary]
    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    leaks: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; warnings do not count."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        for summary in values["depth"].values():
            summary["percentiles_m"] = {str(p): v for p, v in summary["percentiles_m"].items()}
        return {"ok": self.ok, **values}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"{self.name}: {self.root} ({self.recognized_as})"]
        lines += [f"split {name}: {count} frames" for name, count in self.splits.items()]
        sizes = [f"{size} ({count})" for size, count in list(self.sizes.items())[:5]]
        others = len(self.sizes) - len(sizes)
        lines.append(
            f"frames read: {self.frames_read}; size {', '.join(sizes)}" + f" and {others} others" * (others > 0)
        )
        for raster, summary in self.depth.items():
            parts = [f"{p} % {v:.2f}" for p, v in summary.percentiles_m.items() if v is not None]
            lines.append(f"{raster}: percentiles in meters {', '.join(parts)}; missing {summary.missing_share:.1%}")
        lines += self._class_lines()
        lines += [f"WARNING {finding}" for finding in self.warnings]
        lines += [f"PROBLEM {finding}" for finding in self.problems]
        count = sum(finding.count for finding in self.problems)
        warned = sum(finding.count for finding in self.warnings)
        warnings = f"{warned} warning{'s' * (warned > 1)}"
        problems = f"{count} problem{'s' * (count > 1)}" if count else "no problems"
        lines.append(f"{problems}, {warnings}" if warned else problems if count else "nothing wrong")
        return lines

    def _class_lines(self) -> list[str]:
        if not self.classes:
            return ["labels: none"]
        labeled = sum(count.pixels for count in self.classes)
        width = max(len(count.name) for count in self.classes)
        lines = [f"labels: {len(self.classes)} classes, void {self.void_share or 0.0:.1%} of all pixels"]
        for count in self.classes:
            share = count.pixels / labeled if labeled else 0.0
            lines.append(f"  {count.index:3d} {count.name:<{width}} {share:7.2%} of labeled, {count.frames} frames")
        return lines


def _note(findings: dict[str, Finding], kind: str, text: str) -> None:
    finding = findings.setdefault(kind, Finding(kind))
    finding.count += 1
    if len(finding.examples) < _EXAMPLES:
        finding.examples.append(text)
