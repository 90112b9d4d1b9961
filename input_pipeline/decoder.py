"""Examples of a source with their images decoded, and others in place of those that cannot be."""

import dataclasses
from collections.abc import Iterator, Sequence

from input_pipeline.images import BadImageError, to_array
from input_pipeline.sources.base import Source


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Images of a source at one size, by the rule of `on_bad_image`.

    Attributes:
        source: what examples come from.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        fields: names that each example has. Without `image` no image is looked at.
        on_bad_image: 'raise' an error with its name, or 'skip': take the next image of the source.
    """

    source: Source
    image_size: int
    channels: int
    fields: Sequence[str]
    on_bad_image: str

    def __call__(self, indices: Sequence[int], skipped: list[str]) -> Iterator[dict]:
        """The examples, `image` as uint8 [size, size, channels].

        Each bad image that another one replaces is appended to `skipped`, with what is wrong.
        Raises BadImageError.
        """
        try:
            examples = self.source.examples(indices, self.fields)
        except BadImageError:  # of one of them; it is found one by one
            examples = [None] * len(indices)
        for index, example in zip(indices, examples, strict=True):
            yield self._decoded(index, example, skipped)

    def _decoded(self, index: int, example: dict | None, skipped: list[str]) -> dict:
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            try:
                if example is None:
                    example = self.source.example(candidate, self.fields)
                if "image" in self.fields:
                    image = to_array(example["image"], self.image_size, self.channels)
                    example = {**example, "image": image}
                return example
            except BadImageError as error:
                example = None
                bad = f"{self.source.describe(candidate)}: {error}"
                if self.on_bad_image == "raise":
                    raise BadImageError(
                        f"cannot decode {bad}; mend or remove it, or set on_bad_image='skip' to "
                        "take the next image in its place"
                    ) from error
                skipped.append(bad)
        raise BadImageError(f"not one image of {self.source.name} can be decoded; the last: {bad}")
