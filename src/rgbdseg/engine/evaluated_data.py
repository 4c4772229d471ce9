"""From a model and a prepared tree to the frames that it is scored on."""

from __future__ import annotations

from pathlib import Path

from rgbdseg.config.disturbance import InputFaults
from rgbdseg.data.dataset import RGBDDataset, rasters_needed
from rgbdseg.data.disturbed import DisturbedDataset
from rgbdseg.data.hha_audit import require_fitting_hha
from rgbdseg.data.tree import PreparedTree
from rgbdseg.geometry.hha import HHAParameters
from rgbdseg.weights.facts import ModelFacts


def evaluated_dataset(
    facts: ModelFacts,
    tree: PreparedTree,
    split: str,
    *,
    labeled: bool = True,
    limit: int | None = None,
    hha_cache: str | Path | None = None,
    faults: InputFaults | None = None,
) -> RGBDDataset:
    """Return a split with what a model looks at.

    HHA that the tree does not hold is computed as the model was trained, not as the tree says: they differ where a
    model is scored on a tree that it was not trained on.

    Args:
        facts: of the model.
        tree: holds the frames.
        split: of it.
        labeled: with labels.
        limit: only the first frames.
        hha_cache: folder where computed HHA is kept; not used for disturbed depth.
        faults: what is wrong with the frames; None: nothing.

    Raises:
        DataError: for anything the tree lacks, and for stored HHA that does not fit the depth beside it.
        UsageError: for faults that do not go with the model.
    """
    spec = facts.input_spec
    needs = rasters_needed(spec, label=labeled)
    stored = bool(tree.index("hha").files) if "hha" in needs else False
    disturbed = faults is not None and bool(faults.faults)
    parameters = HHAParameters.from_dict(facts.hha) if facts.hha and (disturbed or not stored) else None
    dataset: RGBDDataset
    if faults:
        dataset = DisturbedDataset(
            tree,
            split,
            faults,
            needs=needs,
            spec=spec,
            hha_cache=None if disturbed else hha_cache,
            hha_parameters=parameters,
            limit=limit,
        )
    else:
        dataset = RGBDDataset(tree, split, needs=needs, hha_cache=hha_cache, hha_parameters=parameters, limit=limit)
    if "hha" in dataset.needs:
        require_fitting_hha(tree, dataset.ids)
    return dataset
