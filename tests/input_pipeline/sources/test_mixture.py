import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import AUGMENTATIONS, make_loader
from input_pipeline.images import BadImageError
from input_pipeline.sources.digits import digits
from input_pipeline.sources.mixture import mixture

DIGITS = digits()


def parts(numbers, *counts):
    """Sources with the same classes; image and caption tell which source and example it is."""

    class Part(numbers):
        class_names = ("zero", "one")

        def __init__(self, tag, count):
            super().__init__(count)
            self.name, self.tag, self.class_names = f"part({tag})", tag, type(self).class_names

        def example(self, index, fields):
            example = super().example(index, fields)
            example["caption"] = f"{self.tag} {index}"
            return example | {"label": index % 2}

    return tuple(Part(tag, count) for tag, count in enumerate(counts))


def stream(source, count, **options):
    """(source, index) at the first positions of the stream."""
    order = source.order(range(count), **{"seed": 0, "shuffle": True, **options})
    return [tuple(map(int, e["caption"].split())) for e in source.examples(order, ("caption",))]


@given(
    st.lists(st.sampled_from([0.1, 0.3, 1, 2.5, 7, 100]), min_size=1, max_size=5),
    st.integers(0, 10**18),
    st.integers(1, 400),
)
def test_every_window_has_the_weights(weights, start, length):
    source = mixture((DIGITS,) * len(weights), tuple(map(float, weights)))
    order = source.order(range(start, start + length), 0, True)
    counts = np.bincount(np.array(order) // len(DIGITS), minlength=len(weights))
    wanted = length * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() <= len(weights)
    assert counts.sum() == length


def test_counts_are_exact_over_the_period_of_the_weights(numbers):
    source = mixture(parts(numbers, 5, 5, 5), (0.7, 0.2, 0.1))
    for start in (0, 10, 10**15):
        order = source.order(range(start, start + 10), 0, False)
        assert np.bincount(np.array(order) // 5).tolist() == [7, 2, 1]


def test_each_source_goes_through_all_its_examples_in_turn(numbers):
    source = mixture(parts(numbers, 10, 3), (0.5, 0.5))
    drawn = stream(source, 120)
    for tag, count in ((0, 10), (1, 3)):
        own = [index for part, index in drawn if part == tag]
        epochs = [own[i : i + count] for i in range(0, 60, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 1
    assert stream(source, 120) == drawn
    assert stream(source, 120, seed=1) != drawn
    plain = stream(source, 12, shuffle=False)
    assert [index for part, index in plain if part == 1] == [0, 1, 2, 0, 1, 2]


def test_two_copies_of_a_source_are_drawn_in_different_orders(numbers):
    part = parts(numbers, 20)[0]
    order = np.array(mixture((part, part), (1.0, 1.0)).order(range(40), 0, True))
    assert order[order < 20].tolist() != (order[order >= 20] - 20).tolist()


def test_examples_and_descriptions_are_those_of_the_sources(numbers):
    a, b = parts(numbers, 4, 3)
    source = mixture((a, b), (0.7, 0.3))
    assert len(source) == 7
    assert source.fields == ("image", "label", "caption")
    assert source.class_names == ("zero", "one")
    captions = [e["caption"] for e in source.examples([6, 0, 4, 3], ("caption",))]
    assert captions == ["1 2", "0 0", "1 0", "0 3"]
    assert [source[i]["caption"] for i in (6, 0, 4, 3)] == captions
    assert source.describe(5) == "example 1 of part(1)"
    assert source.name == "mixture(sources=(part(0), part(1),), weights=(0.7, 0.3))"


def loader(source, **options):
    defaults = {"image_size": 2, "channels": 1, "batch_size": 8, "seed": 0}
    defaults["augmentations"] = (AUGMENTATIONS["flip"](),)
    defaults["fields"] = ("image", "label", "caption")
    return make_loader(source, **{**defaults, "process_index": 0, "process_count": 1, **options})


@pytest.mark.parametrize("start", [1, 7, 30])
def test_resume_inside_of_a_mixture(numbers, start):
    source = mixture(parts(numbers, 11, 5), (2.0, 1.0))
    unbroken = loader(source)
    for _ in range(start):
        next(unbroken)
    resumed = loader(source)
    resumed.restore(json.loads(json.dumps(unbroken.state())))
    for _ in range(4):
        one, other = next(resumed), next(unbroken)
        assert all((one[field] == other[field]).all() for field in one)


def test_stream_is_the_same_for_any_number_of_processes_and_workers(tmp_path):
    source = mixture((DIGITS, digits("test")), (0.25, 0.75))
    options = {"image_size": 8, "batch_size": 16}
    whole = [batch["caption"].tolist() for batch in itertools.islice(loader(source, **options), 3)]
    shares = [
        list(itertools.islice(loader(source, process_index=p, process_count=2, **options), 3))
        for p in range(2)
    ]
    joined = [[text for share in shares for text in share[k]["caption"].tolist()] for k in range(3)]
    worker = loader(source, workers=1, **options)
    assert joined == whole == [next(worker)["caption"].tolist() for _ in range(3)]
    worker.close()


def test_an_epoch_is_as_long_as_all_sources_together(numbers):
    batches = list(loader(mixture(parts(numbers, 11, 5), (1.0, 3.0)), epochs=1))
    drawn = [text.split()[0] for batch in batches for text in batch["caption"].tolist()]
    assert (drawn.count("0"), drawn.count("1")) == (4, 12)


def test_labels_of_other_classes_are_dropped_with_the_reason(numbers):
    part = parts(numbers, 4)[0]
    source = mixture((part, DIGITS), (1.0, 1.0))
    assert source.fields == ("image", "caption")
    assert source.num_classes == 0
    with pytest.raises(
        ValueError,
        match=r"its sources mean other classes by it: part\(0\) has zero, one \(2 in all\), "
        r"digits\(split='train'\) zero, one, two \(10 in all\)",
    ):
        loader(source)
    assert loader(source, fields=None)._stream.decoder.fields == ("image",)


def test_fields_are_those_of_all_sources(numbers):
    a, b = parts(numbers, 4, 4)
    b.fields = ("image", "label")
    source = mixture((a, b), (1.0, 1.0))
    assert source.fields == ("image", "label")
    with pytest.raises(ValueError, match=r"part\(1\) has no 'caption'"):
        loader(source)


def test_a_bad_image_is_named_by_its_source(numbers):
    a, b = parts(numbers, 4, 4)

    class Bad(type(b)):
        def example(self, index, fields):
            raise BadImageError("is black")

    with pytest.raises(BadImageError, match=r"example 0 of part\(7\): is black"):
        next(loader(mixture((a, Bad(7, 4)), (1.0, 1.0)), shuffle=False))


def test_fingerprint_follows_parts_and_weights(numbers):
    a, b, c = parts(numbers, 4, 3, 5)
    made = [
        mixture((a, b), (0.7, 0.3)),
        mixture((a, b), (0.6, 0.4)),
        mixture((b, a), (0.7, 0.3)),
        mixture((a, c), (0.7, 0.3)),
    ]
    assert len({source.fingerprint for source in made}) == 4
    assert mixture((a, b), (7.0, 3.0)).fingerprint == made[0].fingerprint


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ((3, 3), (1.0,), "one weight for each source, not 1 for 2"),
        ((), (), "not 0 for 0"),
        ((3, 3), (1.0, 0.0), "above 0 and finite, not 0.0"),
        ((3, 3), (1.0, -1.0), "not -1.0"),
        ((3, 3), (float("inf"), 1.0), "not inf"),
        ((3, 3), (float("nan"), 1.0), "not nan"),
        ((3, 0), (1.0, 1.0), r"part\(1\) is empty"),
    ],
)
def test_arguments_are_checked(numbers, counts, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(parts(numbers, *counts), weights)
