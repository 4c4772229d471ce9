"""Published weights: what they are, what their authors report, and where the files lie.

Facts of the authors' own pages.  None of the files has been opened by this library's authors: hashes are unknown, and
`ZooEntry.verified` is empty until somebody has evaluated one with ``rgbdseg verify``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, slots=True)
class Url:
    """A file that a program can fetch."""

    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model repository of the Hugging Face hub.

    Args:
        file: its path, or the folder that holds it where the file's name is not known.
        holds: text in the name of the one file to take from that folder, in any case.
    """

    repository: str
    file: str
    holds: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ByHand:
    """A file behind a page that only a person can fetch from."""

    page: str
    file: str = ""


Source = Url | HubFile | ByHand
Kind = Literal["model", "encoder"]


@dataclasses.dataclass(frozen=True, slots=True)
class ZooEntry:
    """One published file.

    Args:
        name: what is typed instead of a path.
        model: name in the registry of models, or of encoders where ``kind`` is ``encoder``.
        dataset: what it was trained on, with the number of classes.
        label_set: name of the classes in the order of the logits; empty for encoders, and where the order is not known.
        source: where the file is.
        license: of the weights, as their authors state it.
        recipe: whose evaluation protocol is the authors'; empty where none is known.
        mean_iou: authors' numbers in percent, as (protocol, number).
        options: of the model.
        kind: a whole model, or weights that an encoder starts from.
        note: what else a user should know.
        sha256: of the file, where it is known.
        verified: who evaluated it with which result; empty where nobody has.
    """

    name: str
    model: str
    dataset: str
    label_set: str
    source: Source
    license: str
    recipe: str = ""
    mean_iou: tuple[tuple[str, float], ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kind: Kind = "model"
    note: str = ""
    sha256: str = ""
    verified: str = ""

    @property
    def fetched_by_program(self) -> bool:
        """Whether the file can be downloaded without a person."""
        return not isinstance(self.source, ByHand)


_NYU, _SUN = "NYU Depth V2, 40", "SUN RGB-D, 37"
_MFNET, _DELIVER, _CITY = "MFNet, 9", "DELIVER, 25", "Cityscapes, 19"
_DRIVE_FILE = "https://drive.google.com/file/d/{}/view"
_DRIVE_OPEN = "https://drive.google.com/uc?id={}"
_DRIVE_FOLDER = "https://drive.google.com/drive/folders/{}"
_SEVERAL = "several scales and flip"
_UNSAID = "as reported"


def _geminifusion() -> list[ZooEntry]:
    releases = "https://github.com/JiaDingCN/GeminiFusion/releases/download/"
    rows = [
        ("mit_b3", "mit_b3", _NYU, "NYUDv2_V2/mit-b3.pth.tar", 56.8, ""),
        ("mit_b5", "mit_b5", _NYU, "NYUDv2_V2/mit_b5.pth.tar", 57.7, ""),
        ("swin_tiny", "swin_tiny", _NYU, "NYUDv2_V2/swin_tiny.pth.tar", 52.2, ""),
        ("swin_small", "swin_small", _NYU, "NYUDv2_V2/swin_small.pth.tar", 55.0, ""),
        ("swin_large", "swin_large", _NYU, "NYUDv2_V2/swin_large.pth.tar", 58.8, ""),
        ("swin_large_window12", "swin_large_384", _NYU, "NYUDv2_V2/swin_large_384.pth.tar", 60.2, ""),
        (
            "swin_large_window12",
            "swin_large_384_from_sun",
            _NYU,
            "NYUDv2_V2/finetune-swin-large-384.pth.tar",
            60.9,
            "started from the SUN RGB-D model",
        ),
        ("mit_b3", "mit_b3", _SUN, "SUN_v2/mit-b3.pth.tar", 52.7, ""),
        ("mit_b5", "mit_b5", _SUN, "SUN_v2/mit_b5.pth.tar", 53.3, ""),
        ("swin_tiny", "swin_tiny", _SUN, "SUN_v2/swin_tiny.pth.tar", 50.2, ""),
        ("swin_large_window12", "swin_large_384", _SUN, "SUN_v2/swin-large-384.pth.tar", 54.8, ""),
    ]
    return [
        ZooEntry(
            name=f"geminifusion_{name}-{_slug(dataset)}",
            model=f"geminifusion_{variant}",
            dataset=dataset,
            label_set=_label_set(dataset),
            source=Url(releases + path),
            license="MIT",
            recipe=_recipe(f"geminifusion_{variant}", dataset),
            mean_iou=((_UNSAID, number),),
            options={"geometry": "depth_picture"} if dataset == _SUN else {},
            note=note,
        )
        for variant, name, dataset, path, number, note in rows
    ]


def _dformer() -> list[ZooEntry]:
    license_text = "MIT in the license file, non-commercial use in the README"
    entries = []
    for size, nyu, sun in (("tiny", 51.8, 48.8), ("small", 53.6, 50.0), ("base", 55.6, 51.2), ("large", 57.2, 52.5)):
        for dataset, folder, number in (
            (_NYU, "1P5HwnAvifEI6xiTAx6id24FUCt_i7GH8", nyu),
            (_SUN, "1b005OUO8QXzh0sJM4iykns_UdlbMNZb8", sun),
        ):
            entries.append(
                ZooEntry(
                    name=f"dformer_{size}-{_slug(dataset)}",
                    model=f"dformer_{size}",
                    dataset=dataset,
                    label_set=_label_set(dataset),
                    source=ByHand(
                        _DRIVE_FOLDER.format(folder), f"NYUv2_DFormer_{size.title()}.pth" if dataset == _NYU else ""
                    ),
                    license=license_text,
                    recipe=_recipe(f"dformer_{size}", dataset),
                    mean_iou=((_UNSAID, number),),
                )
            )
        entries.append(
            _start(f"dformer_{size}", ByHand(_DRIVE_FOLDER.format("1YuW7qUtnguUFkhC-sfqGySrerjK0rZJX")), license_text)
        )
    sun_options = {"channel_order": "stored", "decoder_width": 1024}
    for size, nyu, sun in (("small", 56.0, 51.5), ("base", 57.7, 52.8), ("large", 58.4, 53.3)):
        for dataset, folder, number in ((_NYU, "NYU", nyu), (_SUN, "SUNRGBD", sun)):
            entries.append(
                ZooEntry(
                    name=f"dformerv2_{size}-{_slug(dataset)}",
                    model=f"dformerv2_{size}",
                    dataset=dataset,
                    label_set=_label_set(dataset),
                    source=HubFile("bbynku/DFormerv2", f"DFormerv2/{folder}", holds=size),
                    license=license_text,
                    recipe=_recipe(f"dformerv2_{size}", dataset),
                    mean_iou=((_UNSAID, number),),
                    options=sun_options if dataset == _SUN else {},
                )
            )
        file = f"DFormerv2/pretrained/DFormerv2_{size.title()}_pretrained.pth"
        entries.append(_start(f"dformerv2_{size}", HubFile("bbynku/DFormerv2", file), license_text))
    return entries


def _cmx() -> list[ZooEntry]:
    license_text = "MIT; the encoder started from SegFormer weights under NVIDIA's non-commercial license"
    order = "the order of the classes is not known"
    rows: list[tuple[str, str, str, dict[str, Any], str, float, str]] = [
        ("cmx_mit_b2", _NYU, "1hlyglGnEB0pnWXfHPtBtCGGlKMDh2K--", {}, "one scale", 54.1, ""),
        ("cmx_mit_b2", _MFNET, "1wtWxUgDk1N1QOhiGhUavBNc1_Bv9gzOM", {"modality": "thermal"}, _UNSAID, 58.2, ""),
        ("cmx_mit_b2", "ScanNet, 20", "1vWsG_wm5p6NSfCFmoWsCAuyWQh1m8dym", {}, _UNSAID, 61.3, order),
        (
            "cmx_mit_b4",
            "EventScape, 12",
            "1UEnuzu6fwYTH1DROZ0hmzuboLGs5HdmQ",
            {"modality": "event"},
            _UNSAID,
            64.28,
            order,
        ),
    ]
    return [
        ZooEntry(
            name=f"{model}-{_slug(dataset)}",
            model=model,
            dataset=dataset,
            label_set=_label_set(dataset),
            source=ByHand(_DRIVE_FILE.format(identity)),
            license=license_text,
            recipe=_recipe(model, dataset),
            mean_iou=((protocol, number),),
            options=options,
            note=note,
        )
        for model, dataset, identity, options, protocol, number, note in rows
    ]


def _cmnext() -> list[ZooEntry]:
    license_text = "Apache-2.0; the encoder started from SegFormer weights under NVIDIA's non-commercial license"
    nyu, deliver = "1OXrMv1Mi6E-vyedlkNpfc5ibJeJDfwqq", "1OWteEOrjfrC3VNg3sxJFZPHz9urkZ3lm"
    mfnet = "1OaOHMbD5P_HPwTzzXwdYRUFIiGkyFQfP"
    b2, b4, hha, event, lidar = "cmnext_mit_b2", "cmnext_mit_b4", "hha", "event", "lidar"
    rows: list[tuple[str, str, tuple[str, ...], str, str, str, float]] = [
        (b4, _NYU, (hha,), "", nyu, "cmnext_b4_nyu_rgbd.pth", 56.9),
        (b4, _MFNET, ("thermal",), "", mfnet, "cmnext_b4_mfnet_rgbt.pth", 59.9),
        (b2, _DELIVER, (hha, event, lidar), "", deliver, "cmnext_b2_deliver_rgbdel.pth", 66.30),
        (b2, _DELIVER, (), "-rgb", deliver, "cmnext_b2_deliver_rgb.pth", 57.20),
        (b2, _DELIVER, (hha,), "-depth", deliver, "cmnext_b2_deliver_rgbd.pth", 63.58),
        (b2, _DELIVER, (event,), "-event", deliver, "cmnext_b2_deliver_rgbe.pth", 57.48),
        (b2, _DELIVER, (lidar,), "-lidar", deliver, "cmnext_b2_deliver_rgbl.pth", 58.04),
        (b2, _DELIVER, (hha, event), "-depth-event", deliver, "cmnext_b2_deliver_rgbde.pth", 64.44),
        (b2, _DELIVER, (hha, lidar), "-depth-lidar", deliver, "cmnext_b2_deliver_rgbdl.pth", 65.50),
    ]
    return [
        ZooEntry(
            name=f"{model}-{_slug(dataset)}{subset}",
            model=model,
            dataset=dataset,
            label_set=_label_set(dataset),
            source=ByHand(_DRIVE_FOLDER.format(folder), file),
            license=license_text,
            recipe=_recipe(model, dataset) + subset,
            mean_iou=((_UNSAID, number),),
            options={"modalities": modalities},
        )
        for model, dataset, modalities, subset, folder, file, number in rows
    ]


def _robots() -> list[ZooEntry]:
    esanet, emsanet = "esanet_r34_nbt1d", "emsanet_r34_nbt1d"
    city = f"{esanet}_cityscapes"
    sun = {"depth_statistics": "sunrgbd"}
    rows: list[tuple[str, str, str, str, float, dict[str, Any], str]] = [
        (f"{esanet}-nyuv2", esanet, _NYU, "1C5-kJv4w3foicEudP3DAjdIXVuzUK7O8", 50.30, {}, ""),
        (f"{esanet}-nyuv2-scenenet", esanet, _NYU, "1w_Qa8AWUC6uHzQamwu-PAqA7P00hgl8w", 51.58, {}, "from SceneNet"),
        (f"{esanet}-sunrgbd", esanet, _SUN, "1tviMAEOr-6lJphpluGvdhBDA_FetIR14", 48.17, sun, ""),
        (f"{esanet}-sunrgbd-scenenet", esanet, _SUN, "1ukKafozmAcr8fQLbVvTtioKPLwTu0XZO", 48.04, sun, "from SceneNet"),
        (f"{esanet}-cityscapes-half", city, _CITY, "1xal13D_lXYVlfJx_NBiPTvuf4Ijn7wrt", 75.22, {}, "512x1024"),
        (f"{esanet}-cityscapes", city, _CITY, "18eKh2XD9fwdYCUM4MuCYxH7jNucIYk8O", 80.09, {}, "1024x2048"),
        (f"{emsanet}-nyuv2", emsanet, _NYU, "1fqpj_d_VKsy38kU-X8bLmPK9664N-JaB", 50.97, {}, ""),
        (f"{emsanet}-nyuv2-hypersim", emsanet, _NYU, "1QbOJXVrOzsVM8ltX7AxqFSVLsY6vzvNX", 53.34, {}, "from Hypersim"),
        (f"{emsanet}-sunrgbd", emsanet, _SUN, "1Bonpax9TcTTbk0UH3NoVuNVlENCADc6f", 48.39, sun, ""),
        (
            f"{emsanet}-sunrgbd-hypersim",
            emsanet,
            _SUN,
            "1LD4_g-jL4KJPRUmCGgXxx2xGQ7TNZ_o2",
            48.47,
            sun,
            "from Hypersim",
        ),
    ]
    entries = [
        ZooEntry(
            name=name,
            model=model,
            dataset=dataset,
            label_set=_label_set(dataset),
            source=ByHand(_DRIVE_OPEN.format(identity), "the .pth inside the .tar.gz" if model != emsanet else ""),
            license="Apache-2.0" if model == emsanet else "BSD-3-Clause",
            recipe=_recipe(model, dataset),
            mean_iou=((_UNSAID, number),),
            options=options,
            note=note,
        )
        for name, model, dataset, identity, number, options, note in rows
    ]
    entries.append(_start(esanet, ByHand(_DRIVE_OPEN.format("1neUb6SJ87dIY1VvrSGxurVBQlH8Pd_Bi")), "BSD-3-Clause"))
    entries.append(_start(emsanet, ByHand(_DRIVE_OPEN.format("10IVoHgRqXLslYdzMNYKAkYHcJdqsk4BT")), "Apache-2.0"))
    return entries


def _sigma() -> list[ZooEntry]:
    rows = [
        ("tiny", _NYU, "15p2EePJj2sGKoIxXUxMNHq7vvplC8Gcd", 53.9),
        ("small", _NYU, "17afDv4BN69m66N3pfwTFnpBSXIUvlkwk", 57.0),
        ("tiny", _SUN, "16mHj7AiEjkIWm77wBHO0dn7DQbGMljTM", 50.0),
        ("small", _SUN, "1PC8_Oj-m4yf-k6BQ4gBlGUdyOnG3xTsP", 52.4),
        ("tiny", _MFNET, "1N9UU9G5K8qxKsZOuEzSLiCGXC5XCaMaU", 60.2),
        ("small", _MFNET, "1heHnyvDTSa2oYxAD5wcgpIY3OZ198Cr2", 61.1),
    ]
    return [
        ZooEntry(
            name=f"sigma_{size}-{_slug(dataset)}",
            model=f"sigma_{size}",
            dataset=dataset,
            label_set=_label_set(dataset),
            source=ByHand(_DRIVE_FILE.format(identity)),
            license="MIT",
            recipe=_recipe(f"sigma_{size}", dataset),
            mean_iou=((_UNSAID, number),),
            options={"modality": "thermal"} if dataset == _MFNET else {},
            note=""
            if dataset == _MFNET
            else "the authors' number is that of their evaluator: --protocol sigma-released",
        )
        for size, dataset, identity, number in rows
    ]


def _others() -> list[ZooEntry]:
    return [
        ZooEntry(
            name="asymformer-nyuv2",
            model="asymformer",
            dataset=_NYU,
            label_set="nyu40",
            source=ByHand("https://github.com/Fourier7754/AsymFormer"),
            license="Apache-2.0",
            recipe="asymformer-nyuv2",
            mean_iou=(("one scale", 54.1), (_SEVERAL, 55.3)),
            note="the link to the file is in the README of the page",
        ),
        ZooEntry(
            name="dplnet_mit_b5-nyuv2",
            model="dplnet_mit_b5",
            dataset=_NYU,
            label_set="nyu40",
            source=ByHand(_DRIVE_FOLDER.format("1f7o1t3ShAqXiYAhgHPJTlLtaDCT2aTIN")),
            license="none stated",
            recipe="dplnet-mit-b5-nyuv2",
            mean_iou=(("one scale", 58.3), (_SEVERAL, 59.3)),
            options={"unlabeled_channel": True},
            note="starts from SegFormer-B5 trained on ADE20K",
        ),
        ZooEntry(
            name="hdbformer-nyuv2",
            model="hdbformer",
            dataset=_NYU,
            label_set="nyu40",
            source=ByHand(_DRIVE_FOLDER.format("1ds3OILB7-WDe7JwSpuX1OJA6_QqOoJNe")),
            license="non-commercial",
            recipe="hdbformer-nyuv2",
            mean_iou=((_UNSAID, 59.3),),
        ),
        *(
            ZooEntry(
                name=f"mit_b{size}-imagenet",
                model=f"mit_b{size}",
                dataset="ImageNet",
                label_set="",
                source=HubFile(f"nvidia/mit-b{size}", "pytorch_model.bin"),
                license="NVIDIA, non-commercial",
                kind="encoder",
                note="SegFormer's encoder; the release's own files lie at "
                + _DRIVE_FOLDER.format("10XgSW8f7ghRs9fJ0dE-EV8G2E_guVsT5"),
            )
            for size in range(6)
        ),
    ]


def _start(model: str, source: Source, license_text: str) -> ZooEntry:
    """Return the ImageNet weights that a model's training starts from."""
    return ZooEntry(f"{model}-imagenet", model, "ImageNet", "", source, license_text, kind="encoder")


_SLUGS = {"NYU Depth V2": "nyuv2", "SUN RGB-D": "sunrgbd"}
_LABEL_SETS = {_NYU: "nyu40", _SUN: "sun37", _MFNET: "mfnet9", _DELIVER: "deliver25", _CITY: "cityscapes19"}
_WITH_RECIPES = (_NYU, _SUN, _MFNET, _DELIVER)


def _slug(dataset: str) -> str:
    title = dataset.partition(",")[0]
    return _SLUGS.get(title, title.lower())


def _label_set(dataset: str) -> str:
    return _LABEL_SETS.get(dataset, "")


def _recipe(model: str, dataset: str) -> str:
    """Return the name of the recipe that trains a model on a dataset as its authors did; empty where there is none."""
    return f"{model.replace('_', '-')}-{_slug(dataset)}" if dataset in _WITH_RECIPES else ""


ENTRIES: tuple[ZooEntry, ...] = (
    *_geminifusion(),
    *_dformer(),
    *_cmx(),
    *_cmnext(),
    *_robots(),
    *_sigma(),
    *_others(),
)
