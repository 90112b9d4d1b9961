"""Captions made of the names of classes, for data that have labels and no captions."""

import hashlib
import json
from collections.abc import Collection, Sequence

from input_pipeline.sources.base import Source


class ClassCaptions(Source):
    """A source whose example i has template i, modulo their number, with its class for a caption.

    Radford et al. (2021), section 3.1.4, have such captions for zero-shot classes.
    """

    def __init__(self, source: Source, templates: Sequence[str], name: str):
        """The captions of `name`, the source as it is written in a config.

        Raises:
            ValueError: a template without one '{}', or a source without classes or with captions.
        """
        if wrong := [template for template in templates if template.count("{}") != 1]:
            raise ValueError(
                f"{name}: the template {wrong[0]!r} must have one '{{}}', where the class goes"
            )
        if not source.class_names:
            raise ValueError(f"{name}: there are no classes that templates could name")
        if "caption" in source.fields:
            raise ValueError(f"{name}: there are captions already; leave templates out")
        self.name, self.class_names = name, source.class_names
        self.fields = (*source.fields, "caption")
        self._source, self._templates = source, tuple(templates)

    @property
    def fingerprint(self) -> str:
        """Of the source, and of what the captions are."""
        content = json.dumps([self._templates, tuple(self.class_names)])
        return f"{self._source.fingerprint}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._source)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The fields asked for."""
        return self.examples([index], fields)[0]

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, read together where the source can."""
        own = {field for field in fields if field != "caption"}
        if "caption" not in fields:
            return self._source.examples(indices, sorted(own))
        found = self._source.examples(indices, sorted(own | {"label"}))
        return [
            example | {"caption": self._caption(index, example["label"])}
            for index, example in zip(indices, found, strict=True)
        ]

    def _caption(self, index: int, label: int) -> str:
        name = self.class_names[label].replace("_", " ")
        return self._templates[index % len(self._templates)].format(name)

    def describe(self, index: int) -> str:
        """Where the source has the example."""
        return self._source.describe(index)


def captioned(source: Source, templates: Sequence[str]) -> Source:
    """The source itself where there are no templates, else `ClassCaptions` of it."""
    if not templates:
        return source
    name = f"{source.name.removesuffix(')')}, templates={tuple(templates)!r})"
    return ClassCaptions(source, templates, name)
