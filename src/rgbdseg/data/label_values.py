"""The key ``label_values`` of ``dataset.json``: classes whose stored values do not follow each other."""

from __future__ import annotations

from typing import Any

from rgbdseg.data.json_fields import FieldReader
from rgbdseg.labels import LabelSet


def read_class_values(reader: FieldReader, label_set: LabelSet | None) -> tuple[tuple[int, ...], ...]:
    """Return the stored values of each class, in the order of the classes; empty where the key is absent.

    Raises:
        DataError: for values that are no whole numbers of 0..65535, or of two classes, and for classes without any.
    """
    if label_set is None or "label_values" not in reader:
        return ()
    if "first_label" in reader:
        raise reader.wrong("label_values", "one of first_label and label_values, not both")
    section = reader.section("label_values", known=set(label_set.classes))
    found: list[tuple[int, ...]] = []
    taken: dict[int, str] = {}
    for name in label_set.classes:
        value = section.get(name)
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(one) is int and 0 <= one <= 65535 for one in values):
            raise section.wrong(name, "the stored value (0..65535) of the class, or a list of its values")
        for one in values:
            if one in taken:
                raise section.wrong(name, f"values of this class alone: {one} is of '{taken[one]}' already")
            taken[one] = name
        found.append(tuple(values))
    return tuple(found)


def label_values_to_json(label_set: LabelSet, class_values: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Return the value of the key."""
    rows = zip(label_set.classes, class_values, strict=True)
    return {name: values[0] if len(values) == 1 else list(values) for name, values in rows}
