"""Comparison of tables that come back from files."""

from typing import Any

import pandas as pd

from bdm._core.store import TEXT


def assert_same_table(found: pd.DataFrame, expected: pd.DataFrame, **how: Any) -> None:
    """Compare two tables; pandas 3 takes a column without any value for objects, and reads it as text."""
    of_objects = [name for name, dtype in expected.dtypes.items() if pd.api.types.is_object_dtype(dtype)]
    pd.testing.assert_frame_equal(found, expected.astype(dict.fromkeys(of_objects, TEXT)), **how)
