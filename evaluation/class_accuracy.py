"""Are class-conditional samples of the class that was asked for, in the eyes of a classifier?"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

import input_pipeline
from training import components
from training.components import ConfigError

_FIELD = "config.evaluate.metrics"


@dataclasses.dataclass(frozen=True)
class ClassAccuracy:
    """Fraction of the samples that a support vector machine, fitted on real images, recognises.

    It is independent of the model: it sees the pixels of `data.source`'s training split and never a
    sample. Its own accuracy on held-out real images is reported beside, as the bound of what can be
    asked of samples. Meant for small images (handwritten digits); with the defaults it is
    scikit-learn's published example for these: gamma 0.001 on pixels from 0 to 16.

    Attributes:
        train: split that the classifier is fitted on.
        held_out: split of its own accuracy.
        gamma: width of the Gaussian kernel, for pixels from 0 to 16.
        C: weight of the training errors.
        max_examples: images taken from a split at most (fitting is quadratic in them).
    """

    train: str = "train"
    held_out: str = "test"
    gamma: float = 0.001
    C: float = 1.0
    max_examples: int = 20_000

    def __call__(
        self,
        images: UInt8[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"] | None,
        config: Any,
    ) -> dict[str, Any]:
        """Accuracies as fractions; `per_class` by label, for the labels that were asked for.

        Raises:
            ConfigError: samples or source have no labels.
        """
        if labels is None:
            raise ConfigError(f"{_FIELD}: class_accuracy needs samples of classes; these have none")
        from sklearn.svm import SVC  # slow to import, and only this needs it

        train_images, train_labels = self._real(self.train, config)
        held_out_images, held_out_labels = self._real(self.held_out, config)
        classifier = SVC(gamma=self.gamma, C=self.C)
        classifier.fit(_features(train_images), train_labels)
        right = classifier.predict(_features(images)) == labels
        per_class = {
            str(label): float(right[labels == label].mean()) for label in np.unique(labels)
        }
        return {
            "accuracy": float(right.mean()),
            "per_class": per_class,
            "count": len(images),
            "classifier_accuracy": float(
                classifier.score(_features(held_out_images), held_out_labels)
            ),
            "classifier_train_count": len(train_images),
            "classifier_held_out_count": len(held_out_images),
        }

    def _real(
        self, split: str, config: Any
    ) -> tuple[UInt8[np.ndarray, "count height width channels"], Int[np.ndarray, " count"]]:
        """Images and labels of a split, as the model is trained on them but not augmented."""
        spec = components.changed(config.data.source, split=split)
        source = components.build(input_pipeline.SOURCES, spec, _FIELD)
        if not source.num_classes:
            raise ConfigError(f"{_FIELD}: class_accuracy needs labels; {source.name} has none")
        # A random part where there are more than max_examples.
        loader = input_pipeline.make_loader(
            source,
            image_size=config.data.image_size,
            channels=config.data.channels,
            batch_size=min(self.max_examples, len(source)),
            seed=0,
            process_index=0,
            process_count=1,
        )
        try:
            batch = next(loader)
        finally:
            loader.close()
        return batch["image"], batch["label"]


def _features(
    images: UInt8[np.ndarray, "count height width channels"],
) -> Float[np.ndarray, "count features"]:
    return images.reshape(len(images), -1) * (16.0 / 255.0)
