import numpy as np
import pytest

from input_pipeline.sources.shapes_render import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    render,
    scene,
)

SCENES = {
    split: [scene(split, i) for i in range(600)] for split in ("train", "test", "compositional")
}


def pairs(scenes):
    return {(thing.shape, thing.colour) for scene in scenes for thing in scene.things}


def test_scene_follows_from_split_and_index():
    assert scene("train", 7) == SCENES["train"][7]
    assert len({s.things for split in SCENES.values() for s in split}) == 1800


def test_held_out_pairs_are_in_the_compositional_split_alone():
    assert not HELD_OUT & pairs(SCENES["train"] + SCENES["test"])
    assert len(pairs(SCENES["train"])) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)
    firsts = {(s.things[0].shape, s.things[0].colour) for s in SCENES["compositional"]}
    assert firsts == HELD_OUT
    # Of every shape and every colour training sees all but one partner.
    assert sorted(shape for shape, _ in HELD_OUT) == sorted(SHAPES)
    assert sorted(colour for _, colour in HELD_OUT) == sorted(COLOURS)


def test_caption_says_the_attributes_and_nothing_else():
    for s in SCENES["train"]:
        a = s.attributes
        first = f"a {a['size']} {a['colour']} {a['shape']}"
        second = f"a {a['second_size']} {a['second_colour']} {a['second_shape']}"
        ground = f"on a {a['background']} background"
        if a["second_shape"] == "none":
            place = {"centre": "", "left": "on the left ", "right": "on the right "}
            place |= {"top": "at the top ", "bottom": "at the bottom "}
            assert s.caption == f"{first} {place[a['position']]}{ground}"
        else:
            assert s.caption == f"{first} {a['position']} {second} {ground}"
    attributes = {tuple(s.attributes.values()) for s in SCENES["train"]}
    assert len(attributes) == len({s.caption for s in SCENES["train"]})


def test_label_is_shape_and_colour_of_the_first():
    for s in SCENES["test"]:
        shape, colour = divmod(s.label, len(COLOURS))
        assert SHAPES[shape] == s.things[0].shape
        assert list(COLOURS)[colour] == s.things[0].colour


def test_words_agree_with_places():
    for s in SCENES["train"]:
        first, *others = s.things
        x, y = (others[0].x, others[0].y) if others else (0.5, 0.5)
        sides = {
            "left": first.x < x - 0.2,
            "right": first.x > x + 0.2,
            "top": first.y < y - 0.2,
            "bottom": first.y > y + 0.2,
        }
        words = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
        said = words.get(s.position, s.position)
        assert [side for side, holds in sides.items() if holds] == [said] * (said != "centre")


@pytest.mark.parametrize("size", [32, 64])
def test_objects_are_drawn_in_their_colour_inside_the_image(size):
    for s in SCENES["train"][:100]:
        pixels = render(s, size)
        assert pixels.shape == (size, size, 3)
        assert pixels.dtype == np.uint8
        for thing in s.things:
            middle = pixels[int(thing.y * size), int(thing.x * size)]
            assert tuple(middle) == COLOURS[thing.colour]
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        ground = np.array(BACKGROUNDS[s.background])
        assert (np.abs(border - ground).max(axis=1) == 0).mean() > 0.8
        assert s.background not in {thing.colour for thing in s.things}


def mask(shape, size):
    thing = Thing(shape, "red", size, 0.5, 0.5)
    drawn = render(Scene((thing,), "centre", "black"), 64)[..., 0] / COLOURS["red"][0]
    return drawn


def test_areas_are_those_of_the_shapes():
    radius = SIZES["large"] * 64
    areas = {
        "circle": np.pi,
        "square": 2,
        "triangle": 3 * np.sqrt(3) / 4,
        "star": 5 * 0.4 * np.sin(np.pi / 5),
        "cross": 4 * 0.66 * (0.95 - 0.33) + 0.66**2,
        "diamond": 2 * 0.65,
    }
    assert areas.keys() == set(SHAPES)
    for shape, area in areas.items():
        # ImageDraw fills the outline too: about half a fine pixel more all around.
        assert mask(shape, "large").sum() == pytest.approx(area * radius**2, rel=0.08)


def test_shapes_and_sizes_look_different():
    drawn = {(shape, size): mask(shape, size) for shape in SHAPES for size in SIZES}
    for one in drawn:
        for other in drawn:
            difference = np.abs(drawn[one] - drawn[other]).sum() / drawn[one].sum()
            assert (one == other) == (difference < 0.2)


def test_edges_are_smooth():
    edge = mask("circle", "large")
    assert ((edge > 0.1) & (edge < 0.9)).sum() > 20
