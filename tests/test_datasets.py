from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rgbdseg.config.protocol import EvaluationProtocol
from rgbdseg.datasets import (
    DATASETS,
    CountedArea,
    DatasetFacts,
    class_shares,
    facts_of_classes,
    get_label_set,
    label_sets,
    median_range_m,
    register_dataset_facts,
)
from rgbdseg.datasets.nyuv2 import NYU40, NYU40_FREQUENCIES
from rgbdseg.errors import UsageError
from rgbdseg.labels import LabelSet, generic_palette


def test_every_benchmark_has_facts_that_fit_together() -> None:
    assert {"nyuv2", "sunrgbd", "cityscapes", "rooms"} <= set(DATASETS)
    for name in DATASETS:
        facts = DATASETS[name]
        for area in facts.areas.values():
            assert area.size == facts.size
            assert 0 <= area.top < area.bottom <= area.size[0]
            assert 0 <= area.left < area.right <= area.size[1]
        for label_set, frequencies in facts.class_frequencies.items():
            assert {len(band) for band in frequencies} == {len(get_label_set(label_set))}
        assert (facts.server is None) or any(one.official_ids for one in facts.label_sets)


def test_nyu13_sums_up_nyu40() -> None:
    thirteen = DATASETS["nyuv2"].class_frequencies["nyu13"]
    assert np.allclose(np.sum(thirteen, axis=1), np.sum(NYU40_FREQUENCIES, axis=1))
    bed = get_label_set("nyu13").index("bed")
    assert [band[bed] for band in thirteen] == [band[NYU40.index("bed")] for band in NYU40_FREQUENCIES]


def test_a_benchmark_of_another_package_is_known_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS, "_registered", {})
    mine = LabelSet("pair", ("left", "right"), generic_palette(2))
    area = CountedArea((10, 20), 1, 9, 2, 18)
    facts = DatasetFacts(
        "Mine",
        (mine,),
        areas={"mine-inner": area},
        class_frequencies={"pair": ((1, 2), (3, 4))},
        median_range_m=(5.0, 6.0),
    )
    register_dataset_facts("mine", facts)
    assert get_label_set("pair") is mine
    assert facts_of_classes(mine) is facts
    assert median_range_m(mine) == (5.0, 6.0)
    shares = class_shares(mine)
    assert shares is not None
    assert shares.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    rows, columns = EvaluationProtocol(area="mine-inner").counted((10, 20), "a")
    assert (rows, columns) == (slice(1, 9), slice(2, 18))
    with pytest.raises(UsageError, match="a dataset named 'nyuv2' exists already"):
        register_dataset_facts("nyuv2", facts)


def test_what_is_not_known_has_no_facts() -> None:
    other = LabelSet("other", ("x",), generic_palette(1))
    assert facts_of_classes(other) is None
    assert class_shares(other) is None
    assert median_range_m(other) == median_range_m(None) == (0.1, 100.0)
    with pytest.raises(UsageError, match="unknown label set 'nyu4'; did you mean 'nyu40'"):
        get_label_set("nyu4")
    assert list(label_sets()).count("nyu40") == 1


def test_facts_need_no_torch() -> None:
    code = "import sys, rgbdseg.datasets as d; d.label_sets(); d.counted_areas(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
