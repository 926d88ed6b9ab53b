"""The tensor store: read-only arrays, names never reused for other numbers."""

from __future__ import annotations

import numpy as np
import pytest

from escc.errors import EsccError
from escc.ir.store import TensorStore


def test_names_are_never_overwritten() -> None:
    store = TensorStore()
    assert store.add("w", np.zeros(3)) == "w"
    assert store.add("w", np.zeros(3)) == "w"
    assert store.add("w", np.ones(3)) == "w.2"
    assert store.add("w", np.zeros(3, np.int8)) == "w.3"
    assert list(store) == ["w", "w.2", "w.3"]


def test_arrays_are_read_only_and_copies_share_them() -> None:
    store = TensorStore({"w": np.zeros(3)})
    with pytest.raises(ValueError, match="read-only"):
        store["w"][0] = 1
    other = store.copy()
    other.add("v", np.ones(2))
    assert "v" not in store
    assert np.shares_memory(store["w"], other["w"])
    other.keep(["v"])
    assert list(other) == ["v"]
    with pytest.raises(EsccError, match="no array 'w'"):
        other["w"]
