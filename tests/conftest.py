import pytest
from anndata import AnnData

from bdm.data.example import pbmc68k_counts


@pytest.fixture(scope="session")
def example_cells() -> AnnData:
    """700 real blood cells of 10 types; copy before changing them."""
    return pbmc68k_counts()
