"""The properties that are compared: their names, their kinds, and how the distance to test cells is measured."""

from dataclasses import dataclass

import pandas as pd

KINDS = {
    "gene": "genes",
    "cell": "cells",
    "joint": "two values together",
    "biology": "genes that differ between cell types",
    "structure": "structure by cell type and batch",
    "use": "use in an analysis",
}
ALL, LABEL, BATCH = "all", "label", "batch"  # the cells of a row: all, those of a cell type, or those of a batch
COLUMNS = ["property", "kind", "set", "by", "group", "n_cells", "value", "floor"]  # of the table of properties


@dataclass(frozen=True)
class Property:
    """One property of cells.

    Attributes
    ----------
    kind
        One of ``KINDS``.
    name
        Name in figures and on the report.
    """

    kind: str
    name: str


def of_kind(kind: str, names: dict[str, str]) -> dict[str, Property]:
    """Return properties of one kind by their keys."""
    return {key: Property(kind, name) for key, name in names.items()}


TESTS = {
    "de": "differentially expressed",
    "dv": "differentially variable",
    "dd": "differentially distributed",
    "dp": "differentially detected",
    "bd": "bimodal",
}

PROPERTIES: dict[str, Property] = {
    **of_kind(
        "gene",
        {
            "mean": "mean",
            "variance": "variance",
            "coefficient_of_variation": "coefficient of variation",
            "zero_fraction": "zeros of a gene",
            "dispersion": "dispersion",
            "gene_correlation": "gene-gene correlation",
        },
    ),
    **of_kind(
        "cell",
        {
            "library_size": "library size",
            "effective_library_size": "effective library size",
            "cell_zero_fraction": "zeros of a cell",
            "cell_correlation": "cell-cell correlation",
            "pca_distance": "distance in PCA",
            "knn_occurrence": "occurrence among neighbours",
            "local_density": "local density",
        },
    ),
    **of_kind(
        "joint",
        {
            "mean_variance": "mean and variance",
            "mean_zeros": "mean and zeros of a gene",
            "library_zeros": "library size and zeros of a cell",
        },
    ),
    **of_kind("biology", {f"{test}_share": f"{name}, share" for test, name in TESTS.items()}),
    **of_kind("biology", {f"{test}_overlap": f"{name}, overlap" for test, name in TESTS.items()}),
    **of_kind(
        "structure",
        {
            "silhouette_label": "silhouette by cell type",
            "variance_by_label": "variance between cell types",
            "silhouette_batch": "silhouette by batch",
            "variance_by_batch": "variance between batches",
            "mixing": "mixing of batches",
        },
    ),
    **of_kind(
        "use",
        {
            "clustering": "clusters and cell types (k-means)",
            "leiden": "clusters and cell types (Leiden)",
            "classified": "cell typing by real cells",
            "classifies": "cell typing of real cells",
            "integrated_label": "cell types after integration",
            "integrated_batch": "batches after integration",
        },
    ),
}


def no_properties() -> pd.DataFrame:
    """Return a table without rows."""
    texts, numbers = COLUMNS[:5], COLUMNS[5:]
    return pd.DataFrame({name: pd.Series(dtype=object if name in texts else float) for name in [*texts, *numbers]})
