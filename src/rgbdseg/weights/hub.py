"""Own models to and from a repository of the Hugging Face hub, with a model card written from the run."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rgbdseg.errors import UsageError
from rgbdseg.weights.checkpoint import read_stored_model, save_bundle
from rgbdseg.weights.facts import ModelFacts
from rgbdseg.weights.zoo import HUB_PREFIX, explained_download

WEIGHTS_FILE = "model.safetensors"


def push(
    checkpoint: Path,
    repository: str,
    *,
    scores: Mapping[str, Any] | None = None,
    license_name: str = "",
    private: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload the evaluated weights of a checkpoint with a model card; return the address of the commit.

    Args:
        checkpoint: .ckpt of a run or .safetensors of this library.
        repository: OWNER/NAME; made when it does not exist.
        scores: what `evaluate` wrote, for the card: ``protocol``, ``split``, ``mean_iou`` (0..1) and ``command``.
        license_name: identifier for the card, such as ``apache-2.0``; empty: none stated.
        private: whether a new repository can be seen by its owner only.
        endpoint: address of the hub; None: the real one, or the environment variable ``HF_ENDPOINT``.

    Raises:
        CheckpointError: for a file that cannot be read, and where the hub refuses or is not reached.
    """
    _check_repository(repository)
    stored = read_stored_model(checkpoint)
    hub: Any = importlib.import_module("huggingface_hub")
    with tempfile.TemporaryDirectory() as name, explained_download(f"{repository} (push)"):
        folder = Path(name)
        save_bundle(stored.facts, stored.state, folder / WEIGHTS_FILE)
        (folder / "README.md").write_text(
            model_card(stored.facts, repository, scores or {}, license_name), encoding="utf-8"
        )
        if stored.facts.config:
            text = yaml.safe_dump(stored.facts.config, sort_keys=False)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
        api = hub.HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT"))
        api.create_repo(repository, exist_ok=True, private=private)
        info = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"rgbdseg: {stored.facts.model_name}"
        )
    return str(getattr(info, "commit_url", info))


def pull(repository: str, endpoint: str | None = None) -> Path:
    """Return the checkpoint of a repository, downloading it where it is not in the cache yet.

    Raises:
        CheckpointError: where there is none, or the hub is not reached.
    """
    repository = repository.removeprefix(HUB_PREFIX)
    _check_repository(repository)
    hub: Any = importlib.import_module("huggingface_hub")
    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    with explained_download(repository):
        return Path(hub.hf_hub_download(repository, WEIGHTS_FILE, endpoint=endpoint))


def model_card(facts: ModelFacts, repository: str, scores: Mapping[str, Any], license_name: str) -> str:
    """Return the text of the README of a repository: what it is, how it was trained and scored, how to use it.

    Args:
        facts: of the model.
        repository: OWNER/NAME.
        scores: see `push`; empty where there are none.
        license_name: see `push`.
    """
    header: dict[str, Any] = {
        "library_name": "rgbdseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["rgb-d", "semantic-segmentation"],
    }
    if license_name:
        header["license"] = license_name
    config = facts.config or {}
    streams = ", ".join(f"{stream.name} ({stream.channels})" for stream in facts.input_spec.streams)
    lines = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {repository.partition('/')[2]}",
        f"`{facts.model_name}` of rgbdseg for RGB-D semantic segmentation.",
        "| what | |\n|---|---|",
        f"| input | {streams} |",
        f"| classes | {len(facts.label_set)} of {facts.label_set.name} |",
        f"| trained on | {facts.dataset or 'not stated'} |",
        f"| recipe | {config.get('recipe') or 'none'}, seed {config.get('seed', 'not stated')} |",
        f"| license | {license_name or 'not stated'}; mind the license of the dataset |",
    ]
    if scores:
        lines += [
            "## Scores",
            f"mIoU {100 * float(scores['mean_iou']):.2f} on split {scores.get('split', 'not stated')}, protocol: "
            f"{scores.get('protocol', 'not stated')}; the last checkpoint, not the best on that split.",
        ]
        if scores.get("command"):
            lines.append(f"    {scores['command']}")
    lines += [
        "## Use",
        f"    rgbdseg predict {HUB_PREFIX}{repository} --rgb image.png --depth depth.png --out labels",
    ]
    table, rest = lines[:9], lines[9:]
    return "\n\n".join([*table[:3], "\n".join(table[3:]), *rest]) + "\n"


def _check_repository(repository: str) -> None:
    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise UsageError(f"'{repository}' is not the name of a repository; expected OWNER/NAME")
