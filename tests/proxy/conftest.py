"""A bound of one model in memory, with two others in the catalogue."""

from pathlib import Path
from typing import Any

import pytest

from handlers.catalogue import Catalogue, Contents
from tests.support.played_models import ALL, DREAM, INK


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(tmp_path)
    catalogue.write(Contents(models=(DREAM, INK)))
    return catalogue


@pytest.fixture
def bounded(catalogue: Catalogue, tmp_path: Path) -> dict[str, Any]:
    return {**ALL, "catalogue": str(tmp_path), "max_models": "1", "config": str(tmp_path / "config.json")}
