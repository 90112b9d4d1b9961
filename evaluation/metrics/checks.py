"""What every metric of features asks of its input, refused by name and place."""

import numpy as np
from jaxtyping import Float


def check_features(features: Float[np.ndarray, "count dim"], name: str, least: int = 2) -> None:
    """Refuses too few rows, and NaN or infinity.

    Raises:
        ValueError: names the set, and the first row that is not finite.
    """
    if len(features) < least:
        raise ValueError(f"{name}: {len(features)} examples; must be at least {least}")
    for start in range(0, len(features), 4096):
        finite = np.isfinite(features[start : start + 4096])
        if not finite.all():
            wrong = ~finite.all(axis=1)
            row = int(wrong.argmax())
            value = features[start + row][~finite[row]][0]
            raise ValueError(
                f"{name}: row {start + row} has {value} in dimension "
                f"{int((~finite[row]).argmax())}; features must be finite"
            )


def check_pair(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
    least: int = 2,
) -> None:
    """Refuses sets of different dimensions, too few rows, and NaN or infinity.

    Raises:
        ValueError: names the set and what is wrong with it.
    """
    check_dims(generated.shape[1], reference.shape[1])
    check_features(generated, "generated", least)
    check_features(reference, "reference", least)


def check_dims(generated: int, reference: int) -> None:
    """Refuses sets of different dimensions.

    Raises:
        ValueError: names both.
    """
    if generated != reference:
        raise ValueError(
            f"generated has {generated} dimensions, reference {reference}; both must come from "
            "the same output of the same network"
        )
