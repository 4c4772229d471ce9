"""A name instead of a path: fetching published weights and turning them into checkpoints of this library.

Files lie in the cache of the Hugging Face hub (``HF_HOME``), whatever site they come from.  A published file is read
without running code from it, loaded through its family's published layout, and kept converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rgbdseg.errors import CheckpointError, UsageError, unknown_name
from rgbdseg.files import WriteError, write_text
from rgbdseg.weights.zoo_table import ENTRIES, ByHand, HubFile, Url, ZooEntry

HUB_PREFIX = "hf:"
"""``hf:OWNER/NAME`` is accepted wherever a checkpoint is."""

_BLOCK = 1 << 20
_NOTHING_LEFT = 416  # HTTP: the range asked for lies beyond the file


def zoo_entries() -> dict[str, ZooEntry]:
    """Return every entry of the zoo by name."""
    return {entry.name: entry for entry in ENTRIES}


def get_entry(name: str) -> ZooEntry:
    """Return an entry by name; raises UsageError with a suggestion for an unknown one."""
    entries = zoo_entries()
    if name not in entries:
        raise unknown_name("zoo entry", name, entries)
    return entries[name]


def cache_folder() -> Path:
    """Return where files of the zoo are kept: beside those of the hub."""
    return Path(_hub("constants").HF_HUB_CACHE) / "rgbdseg"


def by_hand_path(entry: ZooEntry) -> Path:
    """Return where a person puts a file that no program can fetch."""
    return cache_folder() / "by-hand" / f"{entry.name}.pth"


def fetch(entry: ZooEntry, endpoint: str | None = None) -> Path:
    """Return the published file of an entry, downloading it where that is possible and it is not there yet.

    An interrupted download goes on where it stopped.  The hash is compared with the known one, or with the one that was
    recorded when the file was first used here.

    Args:
        entry: of the zoo.
        endpoint: address of the hub; None: the real one, or the environment variable ``HF_ENDPOINT``.

    Raises:
        CheckpointError: without network, for a file that is absent or has another hash, and for one that only a person
            can fetch and nobody has put in its place yet.
    """
    source = entry.source
    if isinstance(source, ByHand):
        path = by_hand_path(entry)
        if not path.is_file():
            file = f" ({source.file})" if source.file else ""
            raise CheckpointError(
                f"the weights of '{entry.name}' cannot be downloaded by a program: fetch the file{file} from "
                f"{source.page} and save it as {path}"
            )
    elif isinstance(source, Url):
        path = _fetch_url(source.url)
    else:
        path = _fetch_from_hub(entry.name, source, endpoint)
    _check_hash(entry, path)
    return path


def resolve(name: str, endpoint: str | None = None) -> Path:
    """Return the checkpoint (.safetensors) of a zoo name, converted from the published file when it is first asked for.

    Raises:
        UsageError: for a name that the zoo does not have.
        CheckpointError: as `fetch`; for weights of an encoder alone; for classes in an unknown order; for a file that
            does not fit the model.
    """
    entry = get_entry(name)
    if entry.kind == "encoder":
        raise CheckpointError(
            f"'{name}' holds weights that an encoder starts from, not a trained model; train with "
            "model.encoder_weights set to it"
        )
    published = fetch(entry, endpoint)
    if not entry.label_set:
        options = f", options={dict(entry.options)}" if entry.options else ""
        raise CheckpointError(
            f"the order of the classes of '{name}' is not known here; make a LabelSet of their names, and convert the "
            f"file: rgbdseg.weights.published.convert_published({str(published)!r}, 'OUT.safetensors', "
            f"{entry.model!r}, label_set{options})"
        )
    converted = cache_folder() / "converted" / f"{name}-{_recorded_hash(published)[:12]}.safetensors"
    if not converted.is_file():
        _convert(entry, published, converted)
    return converted


def resolve_encoder(name: str, endpoint: str | None = None) -> Path:
    """Return the file of a zoo name that holds weights an encoder starts from, as it was published.

    Raises:
        UsageError: for a name that the zoo does not have.
        CheckpointError: as `fetch`, and for a whole model.
    """
    entry = get_entry(name)
    if entry.kind != "encoder":
        raise CheckpointError(
            f"'{name}' holds a whole model, not the weights that an encoder starts from; train with model.start_from "
            "set to it"
        )
    return fetch(entry, endpoint)


def _convert(entry: ZooEntry, published: Path, converted: Path) -> None:
    # Imported here: the table of the zoo is listed without torch.
    from rgbdseg.datasets import get_label_set  # noqa: PLC0415
    from rgbdseg.weights.published import convert_published  # noqa: PLC0415

    label_set = get_label_set(entry.label_set)
    convert_published(published, converted, entry.model, label_set, options=entry.options, dataset=entry.dataset)


def _fetch_url(url: str) -> Path:
    """Download a plain file, going on where an earlier try stopped."""
    path = cache_folder() / "files" / url.partition("://")[2].replace("/", "--")
    if path.is_file():
        return path
    unfinished = path.with_name(path.name + ".incomplete")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with explained_download(url):
        try:
            _download(url, unfinished)
        except Exception as error:
            if _status(error) != _NOTHING_LEFT:
                raise
            unfinished.unlink()  # longer than the file is now: what arrived belongs to another version of it
            _download(url, unfinished)
    os.replace(unfinished, path)
    return path


def _download(url: str, unfinished: Path) -> None:
    with open(unfinished, "ab") as file:
        _hub("file_download").http_get(url, file, resume_size=file.tell())


def _fetch_from_hub(name: str, source: HubFile, endpoint: str | None) -> Path:
    hub = _hub()
    endpoint = endpoint or os.environ.get("HF_ENDPOINT")
    with explained_download(source.repository):
        file = source.file
        if source.holds:
            listing = hub.HfApi(endpoint=endpoint).list_repo_files(source.repository)
            inside = [entry for entry in listing if entry.startswith(source.file + "/")]
            fitting = [entry for entry in inside if source.holds in entry.rpartition("/")[2].lower()]
            if len(fitting) != 1:
                raise CheckpointError(
                    f"{source.repository} should hold one file for '{name}' in {source.file}/, with '{source.holds}' "
                    f"in its name; found {', '.join(inside) or 'nothing there'}"
                )
            (file,) = fitting
        return Path(hub.hf_hub_download(source.repository, file, endpoint=endpoint))


@contextlib.contextmanager
def explained_download(what: str) -> Iterator[None]:
    """Turn what a transport raises into CheckpointError of one sentence."""
    try:
        yield
    except (CheckpointError, UsageError, WriteError):
        raise
    except Exception as error:
        status = _status(error)
        if status is not None:
            reason = f"the server answers {status}: it is not there, or asks for a login (hf auth login)"
        elif isinstance(error, OSError) and error.errno is not None and error.strerror:
            reason = error.strerror
        else:
            reason = f"no connection ({type(error).__name__})"
        raise CheckpointError(
            f"cannot transfer {what}: {reason}; what has arrived is kept, so the same command goes on from there; "
            "a local file will do as well"
        ) from error


def _status(error: BaseException) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status


def _check_hash(entry: ZooEntry, path: Path) -> None:
    """Raise CheckpointError for a file whose content is not what it was or should be."""
    recorded = _record(path)
    facts = recorded if recorded is not None else {}
    stat = path.stat()
    if facts.get("size") == stat.st_size and facts.get("modified") == stat.st_mtime_ns:
        digest = str(facts["sha256"])
    else:
        digest = _sha256(path)
    expected = entry.sha256 or str(facts.get("sha256", ""))
    if expected and digest != expected:
        raise CheckpointError(
            f"{path} has the hash sha256 {digest}, expected {expected}: it is damaged or another file; delete it to "
            "fetch it again"
        )
    record = {"sha256": digest, "size": stat.st_size, "modified": stat.st_mtime_ns}
    if record != facts:
        write_text(_record_path(path), json.dumps(record))


def _recorded_hash(path: Path) -> str:
    record = _record(path)
    return str(record["sha256"]) if record else _sha256(path)


def _record_path(path: Path) -> Path:
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"


def _record(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and "sha256" in values else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _hub(module: str = "") -> Any:
    """Return huggingface_hub or a module of it, which takes half a second to import."""
    return importlib.import_module(".".join(filter(None, ("huggingface_hub", module))))
