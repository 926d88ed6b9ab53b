"""A folder with the small network, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.sweep.spaces import write_network


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt2, images.npy and labels.npy."""
    folder = tmp_path_factory.mktemp("network")
    write_network(folder)
    return folder
