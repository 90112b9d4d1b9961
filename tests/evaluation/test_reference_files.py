"""Formats are written here as the programs that publish them write theirs."""

import hashlib
import pickle
import re
import subprocess

import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest

from evaluation import pickled_statistics, reference_files
from evaluation.image_files import FileError
from evaluation.metrics.frechet import Moments
from evaluation.references import Reference, save

RANDOM = np.random.RandomState(0)
OUTPUTS = {"pool3": 6, "spatial": 5, "logits": 3}
EMBEDDING = {"embedding": 4}


def moments(dim):
    rows = RANDOM.standard_normal((20, dim))
    return rows.mean(0), np.cov(rows, rowvar=False)


MU, SIGMA = moments(6)
MU_S, SIGMA_S = moments(5)
MU_D, SIGMA_D = moments(4)
IMAGES = RANDOM.randint(0, 256, (7, 8, 8, 3)).astype(np.uint8)
ROWS = RANDOM.standard_normal((30, 6)).astype(np.float32)
PLAIN = {"mu": MU, "sigma": SIGMA}
ADM = {"arr_0": IMAGES, **PLAIN, "mu_s": MU_S, "sigma_s": SIGMA_S}
EDM2 = {
    "num_images": 1281167,
    "fid": {"mu": MU, "sigma": SIGMA},
    "fd_dinov2": {"mu": MU_D, "sigma": SIGMA_D},
}


def written(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def equal(found, mean, covariance, count=0):
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.covariance, covariance)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    assert found.count == count


@pytest.mark.parametrize("compressed", [False, True])
def test_adm(tmp_path, compressed):
    """The virtual one has the CLIP moments beside that nobody here asks for."""
    path = written(tmp_path / "VIRTUAL_x.npz", compressed, **ADM, mu_clip=MU_D, sigma_clip=SIGMA_D)
    found = reference_files.read(path, OUTPUTS)
    assert found.moments.keys() == {"pool3", "spatial"}
    equal(found.moments["pool3"], MU, SIGMA)
    equal(found.moments["spatial"], MU_S, SIGMA_S)
    assert found.features == {}
    np.testing.assert_array_equal(found.images.rows(2, 5), IMAGES[2:5])
    assert found.name == "VIRTUAL_x"
    assert found.identity == {
        "path": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "kind": "adm",
        "keys": {"pool3": "mu", "spatial": "mu_s"},
    }


def test_images_alone_have_no_moments(tmp_path):
    found = reference_files.read(written(tmp_path / "a.npz", arr_0=IMAGES), OUTPUTS)
    assert found.moments == {}
    assert found.identity["kind"] == "images"
    assert (found.images.count, found.images.side) == (7, 8)


@pytest.mark.parametrize("keys", [("mu", "sigma"), ("ref_mu", "ref_sigma")])
@pytest.mark.parametrize("dtype", ["float64", "float32", ">f8"])
def test_moments(tmp_path, keys, dtype):
    mu, sigma = MU.astype(dtype), SIGMA.astype(dtype)
    path = written(tmp_path / "a.npz", **dict(zip(keys, (mu, sigma), strict=True)))
    found = reference_files.read(path, OUTPUTS)
    assert found.moments.keys() == {"pool3"}
    equal(found.moments["pool3"], mu.astype(np.float64), sigma.astype(np.float64))
    assert found.images is None
    # One that was made with CLIP or DINOv2 has the same keys.
    path = written(tmp_path / "b.npz", mu=MU_D, sigma=SIGMA_D)
    assert reference_files.read(path, EMBEDDING).moments.keys() == {"embedding"}


@pytest.mark.parametrize("key", ["pool_3", "feats"])
def test_features(tmp_path, key):
    found = reference_files.read(written(tmp_path / "a_kid.npz", **{key: ROWS}), OUTPUTS)
    np.testing.assert_array_equal(found.features["pool3"], ROWS)
    assert found.moments["pool3"].count == 30
    rows = ROWS.astype(np.float64)
    np.testing.assert_allclose(found.moments["pool3"].mean, rows.mean(0), atol=1e-15)
    covariance = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(found.moments["pool3"].covariance, covariance, atol=1e-14)


NUMBERS = hypothesis.extra.numpy.arrays(
    st.sampled_from(
        [f"{order}{code}" for order in "<>" for code in ("f8", "f4", "i8", "u2", "f2")]
    ),
    hypothesis.extra.numpy.array_shapes(min_dims=0, max_dims=3, min_side=0),
)
LEAVES = NUMBERS | NUMBERS.map(np.asfortranarray) | st.integers() | st.text() | st.floats()
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(st.text(), inner), max_leaves=5)


@hypothesis.given(tree=TREES, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_pickles_are_read_as_pickle_reads_them(tree, protocol):
    data = pickle.dumps(tree, protocol)

    def check(found, expected):
        assert type(found) is type(expected)
        if isinstance(expected, dict):
            assert list(found) == list(expected)
            for key in expected:
                check(found[key], expected[key])
        else:
            np.testing.assert_array_equal(found, expected)
            # numpy brings some to the byte order of the machine.
            native = [np.asarray(value).dtype.newbyteorder("=") for value in (found, expected)]
            assert native[0] == native[1]

    check(pickled_statistics.loads(data), pickle.loads(data))


def old_numpy(data):
    return data.replace(b"numpy._core.", b"numpy.core.")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_edm2(tmp_path, protocol):
    """Whatever a pickle calls numpy by; `num_images` may be numpy's number, arrays Fortran's."""
    turned = {"mu": MU, "sigma": np.asfortranarray(SIGMA)}
    path = tmp_path / "img64.pkl"
    path.write_bytes(pickle.dumps({**EDM2, "fid": turned}, protocol))
    found = reference_files.read(path, OUTPUTS)
    assert found.moments.keys() == {"pool3"}
    np.testing.assert_allclose(found.moments["pool3"].covariance, SIGMA, atol=1e-15)
    assert found.identity["kind"] == "edm2"
    assert found.identity["keys"] == {"pool3": "fid"}
    other = {"num_images": np.int64(5), "fd_dinov2": {"mu": MU_D.astype(">f4"), "sigma": SIGMA_D}}
    path.write_bytes(pickle.dumps(other, protocol))
    found = reference_files.read(path, EMBEDDING)
    equal(found.moments["embedding"], MU_D.astype(np.float32).astype(np.float64), SIGMA_D, 5)


def test_edm2_of_numpy_1(tmp_path):
    path = tmp_path / "img64.pkl"
    # Names of protocol 2 have no length before them, so that they can be changed.
    path.write_bytes(old_numpy(pickle.dumps(EDM2, 2)))
    assert b"numpy.core." in path.read_bytes()
    found = reference_files.read(path, OUTPUTS | EMBEDDING)
    equal(found.moments["pool3"], MU, SIGMA, 1281167)
    equal(found.moments["embedding"], MU_D, SIGMA_D, 1281167)


class Code:
    def __init__(self, call, *args):
        self.made = call, args

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("deep", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path, protocol, deep):
    ran = tmp_path / "ran"
    code = Code(subprocess.check_call, ["touch", str(ran)])
    value = {**EDM2, "fid": {"mu": code, "sigma": SIGMA}} if deep else code
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(
        FileError, match=r"bad\.pkl.*(subprocess|commands)\.check_call, which is code"
    ):
        reference_files.read(path, OUTPUTS)
    assert not ran.exists()
    # It is one that would run.
    pickle.loads(path.read_bytes())
    assert ran.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Code(eval, "1"), "eval, which is code"),
        (Code(np.load, "x"), r"numpy\.load, which is code"),
        ({"fid": {"mu": np.array([{}, None]), "sigma": 1}}, r"array of type 'O8', not of numbers"),
        ({"fid": {"mu": np.array(["a"]), "sigma": 1}}, "array of type 'U1', not of numbers"),
        ({"fid": [1, 2]}, "fid is a list"),
        ({3: 4}, "the file has a key that is a int"),
        ([EDM2], "the file is a list"),
        ("mu", "no mu: it has str"),
        ({"num_images": 3}, "no mu: it has num_images"),
        ({"fid": {"mean": MU}}, "fid has no mu and sigma but mean"),
        ({"fid": 3}, "fid has no mu and sigma but int"),
        ({**EDM2, "num_images": "all"}, "num_images is 'all'"),
        ({"fid": {"mu": 1.0, "sigma": SIGMA}}, r"fid\.mu is \[\] and fid\.sigma \[6, 6\]"),
        ({"fid": {"mu": "x", "sigma": SIGMA}}, "real numbers"),
        ({"fd_dinov2": EDM2["fd_dinov2"]}, "has fd_dinov2 .embedding.*the extractor gives pool3"),
    ],
)
def test_other_pickles_are_refused(tmp_path, value, message):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(FileError, match=rf"bad\.pkl: .*{message}"):
        reference_files.read(path, OUTPUTS)


def test_a_pickle_that_is_cut_off_anywhere_is_refused(tmp_path):
    path, whole = tmp_path / "bad.pkl", pickle.dumps(EDM2)
    for length in [0, 1, *range(2, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"bad\.pkl"):
            reference_files.read(path, OUTPUTS)


def test_a_pickle_with_any_byte_changed_is_refused_or_harmless(tmp_path):
    """No other error comes of it, and no change of what is there for the next file."""
    path, whole = tmp_path / "bad.pkl", pickle.dumps(EDM2)
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= RANDOM.randint(1, 256)
        path.write_bytes(changed)
        try:
            reference_files.read(path, OUTPUTS)
        except FileError:
            continue
    path.write_bytes(whole)
    equal(reference_files.read(path, OUTPUTS).moments["pool3"], MU, SIGMA, 1281167)


def with_value(array, value, *place):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mean": MU}, "no mu; it has mean; a reference has mu"),
        ({"mu": MU}, "mu without sigma"),
        ({"sigma": SIGMA}, "sigma without mu"),
        ({**ADM, "ref_mu": MU}, "ref_mu without ref_sigma"),
        ({**PLAIN, "sigma_s": SIGMA_S}, "sigma_s without mu_s"),
        ({**PLAIN, "ref_mu": MU, "ref_sigma": SIGMA}, "mu and ref_mu in one file"),
        ({**PLAIN, "feats": ROWS}, "mu and feats in one file"),
        ({"pool_3": ROWS, "feats": ROWS}, "pool_3 and feats in one file"),
        ({"pool_3": ROWS, "arr_0": IMAGES}, "pool_3 and arr_0 in one file"),
        ({"mu": MU, "sigma": SIGMA_S}, r"mu is \[6\] and sigma \[5, 5\]"),
        ({"mu": MU, "sigma": SIGMA[0]}, r"mu is \[6\] and sigma \[6\]"),
        ({"mu": MU[None], "sigma": SIGMA}, r"mu is \[1, 6\] and sigma \[6, 6\]"),
        ({"mu": MU, "sigma": SIGMA.astype(complex)}, "real numbers"),
        ({"mu": with_value(MU, np.nan, 2), "sigma": SIGMA}, "1 of 6 entries of mu are not fin"),
        ({"mu": MU, "sigma": with_value(SIGMA, np.inf, 1)}, "6 of 36 entries of sigma are not fin"),
        ({"mu": MU, "sigma": with_value(SIGMA, 9, 1, 2)}, "sigma is not symmetric"),
        ({"mu": MU, "sigma": with_value(SIGMA, -1, 3, 3)}, "sigma has the variance -1"),
        ({"mu": MU, "sigma": np.array({"a": 1}, dtype=object)}, "sigma: objects"),
        ({"mu": MU_S, "sigma": SIGMA_S}, "mu has 5 dimensions, and the extractor gives pool3 of 6"),
        ({"feats": ROWS[:, :5]}, "feats has 5 dimensions, and the extractor gives pool3 of 6"),
        ({"feats": ROWS[:1]}, r"feats is float32 \[1, 6\]"),
        ({"feats": ROWS.astype(int)}, r"feats is int64 \[30, 6\]"),
        ({"feats": ROWS * np.inf}, "feats has entries that are not finite"),
        ({**PLAIN, "mu_s": MU, "sigma_s": SIGMA}, "mean of spatial has 6 dimensions"),
        ({"arr_0": IMAGES.astype(float)}, r"arr_0 is float64 \[7, 8, 8, 3\]; images are uint8"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    path = written(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FileError, match=rf"bad\.npz: .*{message}") as error:
        reference_files.read(path, OUTPUTS)
    assert "\n" not in str(error.value)


def test_dimensions_of_two_outputs_are_ambiguous(tmp_path):
    path = written(tmp_path / "bad.npz", **PLAIN)
    with pytest.raises(FileError, match="6 dimensions, as have pool3 and embedding"):
        reference_files.read(path, {"pool3": 6, "embedding": 6})


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    whole = written(tmp_path / "whole.npz", **ADM).read_bytes()
    path = tmp_path / "bad.npz"
    for length in (0, 2, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"bad\.npz.*not written to its end"):
            reference_files.read(path, OUTPUTS)
    # Its list of contents is whole, what is in it is not.
    place = whole.index(MU.tobytes())
    path.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
    with pytest.raises(FileError, match=r"bad\.npz: mu: .*CRC"):
        reference_files.read(path, OUTPUTS)


def test_no_npz_at_all(tmp_path):
    np.save(tmp_path / "bad.npy", MU)
    (tmp_path / "bad.npy").rename(tmp_path / "bad.npz")
    with pytest.raises(FileError, match=r"bad\.npz: File is not a zip"):
        reference_files.read(tmp_path / "bad.npz", OUTPUTS)
    with pytest.raises(FileError, match=r"neither \.npz nor \.pkl"):
        reference_files.read(written(tmp_path / "a.npz", **PLAIN).rename(tmp_path / "a"), OUTPUTS)
    with pytest.raises(FileError, match="there is no such file"):
        reference_files.read(tmp_path / "none.npz", OUTPUTS)


def test_what_save_writes_is_read_back(tmp_path):
    identity = {"images": {"source": "digits()"}, "version": 1}
    own = {"pool3": Moments(MU, SIGMA, 20), "spatial": Moments(MU_S, SIGMA_S, 20)}
    path = tmp_path / "own.npz"
    save(Reference("digits", identity, own, {"pool3": ROWS}), path)
    found = reference_files.read(path, OUTPUTS)
    assert (found.name, found.identity) == ("digits", identity)
    assert found.moments.keys() == own.keys()
    equal(found.moments["pool3"], MU, SIGMA, 20)
    equal(found.moments["spatial"], MU_S, SIGMA_S, 20)
    np.testing.assert_array_equal(found.features["pool3"], ROWS)
    # Others read the same file by these keys.
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["mu"], MU)
        np.testing.assert_array_equal(arrays["sigma_s"], SIGMA_S)
    with pytest.raises(FileError, match="is of pool3, spatial, and the extractor gives embedding"):
        reference_files.read(path, EMBEDDING)
    with pytest.raises(FileError, match=re.escape("mean of pool3 has 6 dimensions")):
        reference_files.read(path, {"pool3": 7})
