import numpy as np
import pytest

from pipelines import likelihood_report as reports
from training.components import ConfigError

RNG = np.random.default_rng(0)


def rows(images=5, steps=4):
    """Images with three of four terms each."""
    t = np.sort(np.argsort(RNG.random((images, steps)), axis=1)[:, :3], axis=1)
    return {
        "part/prior": RNG.random(images),
        "part/decoder": 1.0 + RNG.random(images),
        "count/network_calls": np.full(images, 3.0),
        "term/t": t.astype(np.float32),
        "term/logsnr": 9.0 - 5.0 * t,
        "term/bits": RNG.random((images, 3)),
        "term/x0_mse": RNG.random((images, 3)),
        "term/eps_mse": RNG.random((images, 3)),
    }


def test_summary():
    given = rows()
    results = reports.summary(given, "vlb")
    bits = given["part/prior"] + given["part/decoder"]
    assert results["bits_per_dim"]["mean"] == pytest.approx(bits.mean())
    assert results["bits_per_dim"]["standard_error"] == pytest.approx(bits.std(ddof=1) / 5**0.5)
    assert results["parts"]["decoder"]["mean"] == pytest.approx(given["part/decoder"].mean())
    assert results["counts"] == {"network_calls": {"mean": 3.0, "max": 3.0}}
    alone = reports.summary({name: value[:1] for name, value in given.items()}, "vlb")
    assert alone["bits_per_dim"] == {"mean": pytest.approx(bits[0]), "standard_error": 0.0}


def test_a_number_that_is_none_is_refused():
    given = rows()
    given["part/prior"][3] = np.nan
    with pytest.raises(ConfigError, match=r"method = 'ode': 1 of 5 images .* image 3\. With"):
        reports.summary(given, "ode")


def test_terms_are_means_over_the_images_that_have_them():
    given = rows()
    table = reports.terms(given)
    assert table["t"].tolist() == [0, 1, 2, 3]
    for t in range(4):
        there = given["term/t"] == t
        assert table["images"][t] == there.sum()
        assert table["bits"][t] == pytest.approx(given["term/bits"][there].mean())
        assert table["logsnr"][t] == 9.0 - 5.0 * t
    lines = reports.csv(table).decode().splitlines()
    assert lines[0] == "t,logsnr,bits,x0_mse,eps_mse,images"
    assert [float(v) for v in lines[2].split(",")] == pytest.approx(
        [table[name][1] for name in table]
    )


def test_terms_without_steps_are_of_the_draws():
    given = rows()
    del given["term/t"]
    table = reports.terms(given)
    assert table["t"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(table["bits"], given["term/bits"].mean(0))
    assert reports.terms({"part/prior": np.ones(2)}) == {}


def test_text_has_the_first_step_in_a_row_of_its_own():
    table = {name: np.arange(41.0) for name in ("logsnr", "bits", "x0_mse", "eps_mse")}
    table = {"t": np.arange(41)} | table
    results = reports.summary(rows(), "vlb") | {"count": 5}
    lines = reports.text(results, table).splitlines()
    spans = [line.split()[:3] for line in lines[lines.index("") + 2 :]]
    assert spans[:2] == [["0", "-", "0"], ["1", "-", "4"]]
    assert spans[-1] == ["37", "-", "40"]
    assert len(spans) == 11
    assert "over 5 images; network_calls 3" in lines
