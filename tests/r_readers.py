"""Encodings in ``.h5ad`` files that anndataR reads since version 1.0, as zellkonverter does."""

from pathlib import Path

import h5py

COLUMNS = {"array", "categorical", "string-array"}
MATRICES = {"array", "csr_matrix"}
ENCODINGS = {  # of elements by slot, of parts of these by their encoding
    "X": MATRICES,
    "layers": {"dict", *MATRICES},
    "obs": {"dataframe"},
    "var": {"dataframe"},
    "obsm": {"dict", "dataframe", "array"},
    "varm": {"dict", "dataframe", "array"},
    "uns": {"dict", "dataframe", "array", "string-array", "string", "numeric-scalar"},
    "dataframe": COLUMNS,
    "categorical": {"array", "string-array"},
}


def check_r_reads(path: Path) -> None:
    """Check the encoding of each element of cells."""
    with h5py.File(path) as file:
        for slot, element in file.items():
            if not isinstance(element, h5py.Group) or len(element):
                check_encoding(element, ENCODINGS[slot])


def check_encoding(element: h5py.Group | h5py.Dataset, allowed: set[str]) -> None:
    """Check the encoding of an element and of its parts."""
    encoding = element.attrs.get("encoding-type")
    assert encoding in allowed, f"{element.name} has the encoding {encoding}"
    if encoding in ("dict", "dataframe", "categorical"):
        for part in element.values():
            check_encoding(part, ENCODINGS.get(encoding, allowed))
