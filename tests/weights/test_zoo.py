from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rgbdseg.cli.main import in_options
from rgbdseg.cli.zoo_page import BEGIN, with_list, zoo_list
from rgbdseg.encoders import create_encoder
from rgbdseg.errors import CheckpointError, UsageError
from rgbdseg.input_spec import InputSpec
from rgbdseg.models._registry import VARIANTS, create_model, get_variant
from rgbdseg.recipes import get_recipe
from rgbdseg.weights import zoo
from rgbdseg.weights.checkpoint import load_bundle
from rgbdseg.weights.imagenet import load_encoder_weights
from rgbdseg.weights.layout_evidence import layout_evidence
from rgbdseg.weights.published import to_published
from rgbdseg.weights.zoo_table import ENTRIES, ByHand, HubFile, Url, ZooEntry
from tests.shared_data import shared_path
from tests.weights.hub_server import HubServer, hub_server
from tests.weights.test_files import Surprise

MODEL, CLASSES = "sagate", "nyu13"
OPTIONS = {
    "encoder": "test_resnet",
    "output_stride": 32,
    "dilations": None,
    "decoder_channels": 8,
    "reduced_channels": 4,
    "auxiliary_channels": 8,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client waits a second before each of its own tries."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server() as running:
        yield running


def published_file(path: Path, classes: int = 13) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = to_published(create_model(MODEL, classes, **OPTIONS))
    torch.save({"model": state, "epoch": 3, "best": np.float64(0.5)}, path)
    return state


def entry(source: Url | HubFile | ByHand, **changes: str) -> ZooEntry:
    values = {"license": "MIT", "model": MODEL, "dataset": "rooms", "label_set": CLASSES, "name": "tiny-rooms"}
    return ZooEntry(**{**values, **changes}, source=source, options=OPTIONS)


def known(monkeypatch: pytest.MonkeyPatch, *entries: ZooEntry) -> None:
    monkeypatch.setattr(zoo, "ENTRIES", entries)


def test_every_entry_names_a_model_and_says_where_it_is() -> None:
    names = [e.name for e in ENTRIES]
    assert len(set(names)) == len(names)
    assert all(e.license for e in ENTRIES)
    assert all(e.verified == "" for e in ENTRIES)
    assert {e.name for e in ENTRIES if isinstance(e.source, Url)} >= {"geminifusion_mit_b3-nyuv2"}
    by_hand = zoo.get_entry("cmx_mit_b2-nyuv2")
    assert isinstance(by_hand.source, ByHand)
    assert "1hlyglGnEB0pnWXfHPtBtCGGlKMDh2K--" in by_hand.source.page
    assert by_hand.mean_iou == (("one scale", 54.1),)


def test_numbers_are_those_of_the_cards() -> None:
    for one in (e for e in ENTRIES if e.kind == "model"):
        card = get_variant(one.model).model.card  # type: ignore[attr-defined]
        dataset = one.dataset.partition(",")[0]
        published = {result.mean_iou for result in card.results if result.dataset.startswith(dataset)}
        assert {number for _, number in one.mean_iou} <= published, one.name


def sees(model: str, options: Mapping[str, object]) -> InputSpec:
    """What a network with these options is fed: that of the small one of its family, which is built in no time."""
    family = get_variant(model).model
    return _small_spec(family, tuple(options.items()))


def _small_spec(family: object, options: tuple[tuple[str, object], ...]) -> InputSpec:
    key = (family, str(options))
    if key not in _SPECS:
        small = next(v for v in (VARIANTS[name] for name in VARIANTS) if v.model is family and v.small)
        with torch.device("meta"):
            _SPECS[key] = small.model(5, **{**small.options, **small.tiny, **dict(options)}).input_spec
    return _SPECS[key]


_SPECS: dict[tuple[object, str], InputSpec] = {}


def test_recipes_of_entries_exist_and_train_what_the_entry_holds() -> None:
    for entry in ENTRIES:
        if entry.recipe:
            config = get_recipe(entry.recipe)
            assert config.model.name == entry.model, entry.name
            dataset = entry.name.partition("-")[2]  # those that differ in what they started from share one
            assert f"{entry.model.replace('_', '-')}-{dataset}".startswith(entry.recipe), entry.name
            assert sees(entry.model, entry.options) == sees(entry.model, config.model.options), entry.name
    # Every network that was trained on one of these has one.
    benchmarks = ("-nyuv2", "-sunrgbd", "-mfnet", "-deliver")
    assert [e.name for e in ENTRIES if any(b in e.name for b in benchmarks) and not e.recipe] == []


CASES = {layout_evidence(e).case: e for e in ENTRIES if e.kind == "model" and layout_evidence(e).exact}


@pytest.mark.parametrize("name", [e.name for e in CASES.values()])
def test_layouts_that_are_called_exact_are_those_of_a_golden_case(name: str) -> None:
    """Name by name and shape by shape, with the options that the entry builds the network with."""
    entry = zoo.get_entry(name)
    case = json.loads(shared_path(f"golden/{layout_evidence(entry).case}.json").read_text())
    classes = int(case["classes"]) - bool(entry.options.get("unlabeled_channel"))
    with torch.device("meta"):
        model = create_model(entry.model, classes, **entry.options)
    layout = model.layout
    assert layout is not None
    listed = {layout.spelling(t["name"]): t["shape"] for t in case["tensors"] if not layout.is_unused(t["name"])}
    written = to_published(model)
    ours = {layout.key(key): value for key, value in model.state_dict().items()}
    shapes = {key: list(layout.write(key, value).shape) for key, value in ours.items()}
    assert shapes == listed
    assert written.keys() == ours.keys()


def test_evidence_names_what_tests_load() -> None:
    for entry in ENTRIES:
        evidence = layout_evidence(entry)
        assert evidence.case or evidence.inferred, entry.name
        assert not evidence.case or shared_path(f"golden/{evidence.case}.json").is_file(), entry.name


def test_classes_in_an_unknown_order_are_asked_for(cache: Path, tmp_path: Path) -> None:
    entry = zoo.get_entry("cmx_mit_b4-eventscape")
    place = zoo.by_hand_path(entry)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"anything")
    with pytest.raises(
        CheckpointError, match=r"order of the classes .* is not known .*options={'modality': 'event'}"
    ) as error:
        zoo.resolve(entry.name)
    command = (
        f"one per line, and run: rgbdseg convert cmx_mit_b4 {shlex.quote(str(place))} OUT.safetensors --label-set FILE "
    )
    for said in ("predict", "train"):
        assert in_options(str(error.value), said).endswith(command + "--option modality event")


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'cmx_mit_b2-nyuv2'"):
        zoo.get_entry("cmx_mit_b2-nyu")


def test_a_file_put_in_its_place_by_hand_becomes_a_checkpoint(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand = entry(ByHand("https://example.org/page", "tiny.pth"))
    known(monkeypatch, by_hand)
    with pytest.raises(CheckpointError, match=r"tiny.pth\) from https://example.org/page and save it as") as error:
        zoo.resolve("tiny-rooms")
    place = zoo.by_hand_path(by_hand)
    assert str(place) in str(error.value)
    place.parent.mkdir(parents=True)
    state = published_file(place)
    bundle = load_bundle(zoo.resolve("tiny-rooms"))
    assert bundle.facts.label_set.name == CLASSES
    back = to_published(bundle.model)
    assert all(torch.equal(back[name], value) for name, value in state.items())
    # Converted once: the same file again, without reading the published one.
    monkeypatch.setattr(zoo, "_convert", None)
    zoo.resolve("tiny-rooms")


def test_an_interrupted_download_goes_on_where_it_stopped(
    cache: Path, tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    published_file(tmp_path / "published.pth")
    content = (tmp_path / "published.pth").read_bytes()
    server.files["/release/tiny.pth.tar"] = content
    plain = entry(Url(f"{server.address}/release/tiny.pth.tar"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    server.break_after = 1024
    with pytest.raises(CheckpointError, match="what has arrived is kept"):
        zoo.fetch(plain)
    server.break_after = None
    server.ranges.clear()
    assert zoo.fetch(plain).read_bytes() == content
    assert server.ranges
    assert server.ranges[0] == "bytes=1024-"


def test_a_file_of_the_hub_is_found_by_what_its_name_holds(cache: Path, tmp_path: Path, server: HubServer) -> None:
    published_file(tmp_path / "p.pth")
    content = (tmp_path / "p.pth").read_bytes()
    server.repositories["someone/nets"] = {"net/NYU/Net_Small_NYU.pth": content, "net/NYU/Net_Large_NYU.pth": b"x"}
    source = HubFile("someone/nets", "net/NYU", holds="small")
    assert zoo.fetch(entry(source), server.address).read_bytes() == content
    with pytest.raises(CheckpointError, match=r"found net/NYU/Net_Small_NYU.pth, net/NYU/Net_Large_NYU.pth"):
        zoo.fetch(entry(HubFile("someone/nets", "net/NYU", holds="base")), server.address)


def test_what_is_not_there_is_said_in_one_sentence(cache: Path, server: HubServer) -> None:
    with pytest.raises(CheckpointError, match="404"):
        zoo.fetch(entry(Url(f"{server.address}/nothing.pth")))
    with pytest.raises(CheckpointError, match="404"):
        zoo.fetch(entry(HubFile("someone/absent", "a.pth")), server.address)


def test_without_network(cache: Path) -> None:
    closed = "http://127.0.0.1:9"  # the discard port: nothing listens
    with pytest.raises(CheckpointError, match="cannot transfer"):
        zoo.fetch(entry(Url(f"{closed}/a.pth")))


def test_another_hash_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = entry(ByHand("page"))
    place = zoo.by_hand_path(plain)
    place.parent.mkdir(parents=True)
    published_file(place)
    zoo.fetch(plain)  # the first use records the hash
    changed = bytearray(place.read_bytes())
    changed[-1] ^= 1
    place.write_bytes(bytes(changed))
    os.utime(place, ns=(1, 1))
    with pytest.raises(CheckpointError, match="it is damaged or another file"):
        zoo.fetch(plain)
    with pytest.raises(CheckpointError, match="expected 00"):
        zoo.fetch(entry(ByHand("page"), name="other", sha256="00") if _placed(plain, "other") else plain)


def _placed(plain: ZooEntry, name: str) -> bool:
    zoo.by_hand_path(plain).with_name(f"{name}.pth").write_bytes(b"anything")
    return True


def test_a_hash_that_is_known_is_compared_after_the_download(
    cache: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"a release's file"
    digest = hashlib.sha256(content).hexdigest()
    server.files["/release/tiny.pth"] = b"another file, put in its place"
    source = Url(f"{server.address}/release/tiny.pth")
    with pytest.raises(CheckpointError, match=f"expected {digest}.*delete it to fetch it again") as error:
        zoo.fetch(entry(source, sha256=digest))
    Path(str(error.value).split(" has the hash")[0]).unlink()
    server.files["/release/tiny.pth"] = content
    assert zoo.fetch(entry(source, sha256=digest)).read_bytes() == content
    server.repositories["someone/nets"] = {"tiny.pth": b"another file"}
    with pytest.raises(CheckpointError, match=f"expected {digest}"):
        zoo.fetch(entry(HubFile("someone/nets", "tiny.pth"), sha256=digest), server.address)


def test_a_server_that_sends_the_whole_file_again(
    cache: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 20
    server.files["/release/tiny.pth"] = content
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    source = entry(Url(f"{server.address}/release/tiny.pth"))
    server.break_after = 1024
    with pytest.raises(CheckpointError, match="what has arrived is kept"):
        zoo.fetch(source)
    server.break_after, server.ignores_ranges = None, True
    assert zoo.fetch(source).read_bytes() == content


def test_an_interrupted_download_from_the_hub_is_made_good(
    cache: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 20
    server.repositories["someone/nets"] = {"tiny.pth": content}
    source = entry(HubFile("someone/nets", "tiny.pth"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    server.break_after = 1024
    with pytest.raises(CheckpointError, match="cannot transfer someone/nets"):
        zoo.fetch(source, server.address)
    server.break_after = None
    assert zoo.fetch(source, server.address).read_bytes() == content


def test_code_in_a_release_is_not_run(
    cache: Path, tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published_file(tmp_path / "published.pth")
    torch.save({"model": state, "extra": Surprise()}, tmp_path / "evil.pth")
    server.files["/release/evil.pth"] = (tmp_path / "evil.pth").read_bytes()
    known(monkeypatch, entry(Url(f"{server.address}/release/evil.pth")))
    with pytest.raises(CheckpointError, match="reading it could run code, so it was refused"):
        zoo.resolve("tiny-rooms")
    assert "code from the checkpoint ran" not in capsys.readouterr().out
    assert not list(cache.rglob("*.safetensors"))


def test_a_release_of_another_network_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = entry(ByHand("page"))
    known(monkeypatch, by_hand)
    place = zoo.by_hand_path(by_hand)
    place.parent.mkdir(parents=True)
    published_file(place, classes=12)
    with pytest.raises(CheckpointError):
        zoo.resolve("tiny-rooms")
    assert not list(cache.rglob("*.safetensors"))


def test_weights_of_an_encoder_start_a_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = entry(ByHand("page"), name="tiny-imagenet", kind="encoder")
    known(monkeypatch, start, entry(ByHand("page")))
    torch.manual_seed(1)
    encoder = create_encoder("test_resnet", output_stride=32)
    place = zoo.by_hand_path(start)
    place.parent.mkdir(parents=True)
    torch.save(dict(encoder.state_dict()), place)
    model = create_model(MODEL, 13, **OPTIONS)
    load_encoder_weights(model, "tiny-imagenet")
    for _, stream in model.encoder_streams():
        for name, value in encoder.state_dict().items():
            assert torch.equal(stream.state_dict()[name], value)
    with pytest.raises(CheckpointError, match=r"holds a whole model.*model\.start_from"):
        load_encoder_weights(model, "tiny-rooms")


def test_the_page_has_the_list_and_keeps_what_surrounds_it() -> None:
    page = Path(__file__).parents[2] / "docs" / "zoo.md"
    text = page.read_text(encoding="utf-8")
    assert with_list(text, zoo_list(ENTRIES)) == text, "rgbdseg zoo --markdown docs/zoo.md"
    for one in ENTRIES:
        assert f"| `{one.name}` |" in text
    first = with_list("# Zoo\n\nbefore\n", zoo_list(ENTRIES[:1])) + "\nafter\n"
    second = with_list(first, zoo_list(ENTRIES[:2]))
    assert "* exact (2): " in second
    assert second.startswith("# Zoo\n\nbefore\n")
    assert second.endswith("\nafter\n")
    assert ENTRIES[1].name in second
    assert second.count(BEGIN) == 1
    assert "[mit-b3.pth.tar](https://github.com/JiaDingCN" in second


def test_encoder_weights_are_no_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"model\.encoder_weights"):
        zoo.resolve("mit_b0-imagenet")


def test_numbers_of_the_zoo_are_those_of_the_cards() -> None:
    """A published number stands in the table of methods and beside the file that reached it; both must be the same."""
    compared = 0
    for entry in ENTRIES:
        if not entry.mean_iou:  # weights to start from
            continue
        card = get_variant(entry.model).model.card  # type: ignore[attr-defined]
        results = [r for r in card.results if r.dataset.startswith(entry.dataset)]
        of_variant = [r.mean_iou for r in results if r.model == entry.model]
        for _, number in entry.mean_iou if of_variant else ():
            assert number in of_variant, f"{entry.name}: {number}, the card has {of_variant}"
            compared += 1
    assert compared > 40
