import numpy as np
import pytest

from diffusion.schedules import linear, table

BETAS = np.linspace(1e-3, 0.2, 20)
ALPHA_BAR = np.cumprod(1.0 - BETAS)
LOGSNR = np.log(ALPHA_BAR) - np.log1p(-ALPHA_BAR)
VALUES = {"betas": BETAS, "alpha_bar": ALPHA_BAR, "logsnr": LOGSNR}


def write(path, values, **others):
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values=values, **others)
    else:
        path.write_text(
            (", " if path.suffix == ".csv" else "\n").join(map(repr, map(float, values)))
        )
    return str(path)


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".txt"])
def test_every_kind_and_format(tmp_path, suffix, kind):
    schedule = table(path=write(tmp_path / f"t{suffix}", VALUES[kind]), kind=kind)
    np.testing.assert_allclose(schedule.logsnr(np.arange(20)), LOGSNR, rtol=1e-12)
    np.testing.assert_allclose(schedule.betas, BETAS, rtol=1e-11)


def test_an_archive_is_read_by_the_name_of_its_kind(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, **VALUES)
    for kind in VALUES:
        np.testing.assert_allclose(table(str(path), kind).logsnr(19), LOGSNR[19], rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "last"), [("betas", 1.0), ("alpha_bar", 0.0), ("logsnr", -np.inf)]
)
def test_the_end_may_be_pure_noise(tmp_path, kind, last):
    schedule = table(write(tmp_path / "t.txt", np.append(VALUES[kind], last)), kind)
    assert schedule.level(20).alpha == 0.0
    assert schedule.betas[20] == 1.0
    assert np.all(np.isfinite(schedule.logsnr(np.linspace(0, 19.99, 200))))


def test_logsnr_keeps_the_digits_that_alpha_bar_loses(tmp_path):
    exact = np.array([40.0, 0.0, -40.0])
    schedule = table(write(tmp_path / "t.npy", exact), "logsnr")
    np.testing.assert_allclose(schedule.sigma(0) ** 2, np.exp(-40.0), rtol=1e-12)
    np.testing.assert_array_equal(schedule.logsnr(np.arange(3)), exact)


@pytest.mark.parametrize(
    ("name", "values", "kind", "message"),
    [
        (
            "t.npy",
            [0.5, 0.6],
            "alpha_bar",
            "t.npy read as kind='alpha_bar': logsnr must fall.*at 0",
        ),
        ("t.npy", [1.0, 0.6], "alpha_bar", r"alpha_bar must lie in \[0, 1\); seen 0.6 to 1"),
        ("t.npy", [0.6, -0.1], "alpha_bar", "alpha_bar must lie in"),
        ("t.npy", [0.1, 1.2], "betas", "betas must lie strictly between 0 and 1; seen 0.1 to 1.2"),
        ("t.npy", [1.0, -1.0, -1.0], "logsnr", "logsnr must fall.* -1 at 1 and -1 at 2"),
        ("t.npy", [np.inf, -1.0], "logsnr", "logsnr must be finite"),
        ("t.txt", [0.5, np.nan], "alpha_bar", "entry 1 is NaN"),
        ("t.csv", [0.5], "alpha_bar", r"has shape \(1,\)"),
        ("t.npy", [[0.5, 0.4]], "alpha_bar", r"has shape \(1, 2\)"),
        ("t.dat", [0.5, 0.4], "alpha_bar", "ends in '.dat'; it must be one of .npy"),
        ("t.npy", [0.5, 0.4], "betta", "kind='betta'.*did you mean 'betas'"),
    ],
)
def test_mistakes_are_named(tmp_path, name, values, kind, message):
    with pytest.raises(ValueError, match=message):
        table(write(tmp_path / name, values), kind)


def test_a_missing_file_and_one_of_words(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path='.*no\.npy': no such file"):
        table(str(tmp_path / "no.npy"))
    (tmp_path / "t.txt").write_text("0.9 high 0.1")
    with pytest.raises(ValueError, match=r"cannot be read as numbers.*high"):
        table(str(tmp_path / "t.txt"))
    path = tmp_path / "two.npz"
    np.savez(path, a=BETAS, b=BETAS)
    with pytest.raises(ValueError, match="arrays a, b, none of them named 'betas'"):
        table(str(path), "betas")


def test_linear_read_back_is_linear(tmp_path):
    schedule = linear()
    again = table(write(tmp_path / "t.npy", schedule.betas), "betas")
    np.testing.assert_allclose(again.table, schedule.table, rtol=1e-11)
