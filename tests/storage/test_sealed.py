"""What a field has to be."""

import pytest

from rlm_jax.storage import sealed


@pytest.mark.parametrize(
    ("value", "kind", "wrong"),
    [
        ({"a": 1}, {"a": int}, None),
        ({"a": True}, {"a": int}, "a is True, no int"),
        ({"a": 1}, {"a": float, "b": sealed.Maybe(str)}, None),
        ({"a": 1, "b": 2}, {"b": sealed.Maybe(str)}, "b is 2, no str"),
        ({"a": float("inf")}, {"a": float}, "a is inf, no float"),
        ({"a": float("nan")}, {"a": float}, "a is nan, no float"),
        ({"a": 10**300}, {"a": float, "b": sealed.Maybe(int)}, None),
        ({"a": 10**400}, {"a": float}, f"a is 1{'0' * 56}..., no float"),
        ({"a": -(10**400)}, {"a": int}, f"a is -1{'0' * 55}..., no int"),
        ({}, {"a": str}, "a is missing"),
        ([], {"a": str}, "it is no object"),
        ({"a": {"b": [1, "2"]}}, {"a": {"b": list[int]}}, "a.b[1] is '2', no int"),
        ({"a": {"x": 1}}, {"a": dict[str, str]}, "a['x'] is 1, no str"),
        ({"a": None}, {"a": int | None}, None),
        ({"a": "x"}, {"a": int | None}, "a is 'x'"),
        ({"a": 1}, {"a": dict}, "a is 1, no dict"),
    ],
)
def test_kinds(value, kind, wrong):
    assert sealed.misfit(value, kind) == wrong
