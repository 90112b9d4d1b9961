import pytest

from diffusion.options import check_option


def test_allowed_values_pass():
    check_option("clip", "static", ("none", "static"))


def test_error_says_field_value_allowed_and_nearest():
    with pytest.raises(ValueError, match=r"^clip='sttic': must be one of 'none', 'static' \(did"):
        check_option("clip", "sttic", ("none", "static"))
    with pytest.raises(ValueError, match=r"must be one of 'none', 'static'$"):
        check_option("clip", "quantile", ("none", "static"))
