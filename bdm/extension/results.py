"""Report of an extension: where each type joined the tree, and how well the model expresses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.store import Result
from bdm.data.symbols import display_names
from bdm.errors import counted
from bdm.extension.extend import MIN_HELD_OUT, FittedExtension
from bdm.hierarchy.tree import Hierarchy
from bdm.model.model import BranchedModel, type_specific_genes

HELD_OUT = {  # cells that a gain is measured with, and what is to be said of them
    "test": ("test cell", ""),
    "validation": ("validation cell", "which also chose the decoder"),
    "train": ("training cell", "as none were held out"),
}
N_GENES, MIN_CHANGE = 50, 0.1  # genes of a type that are listed, and their least log2 fold change


@dataclass(frozen=True, repr=False)
class ExtensionReport(Result):
    """The types that an extension added.

    Attributes
    ----------
    extensions
        One row a type, see :func:`bdm.extension.results.extension_row`.
    likelihood
        See :func:`bdm.extension.results.likelihood_table`.
    genes
        Genes that the type-specific decoders change most, see :func:`bdm.extension.results.genes_table`.
    hierarchy
        After the extension.
    n_before
        Number of extensions that the model already had.
    provenance
        Version, packages, seed, settings, and checksums of the model and the cells.
    """

    kind = "extension_report"

    extensions: pd.DataFrame
    likelihood: pd.DataFrame
    genes: pd.DataFrame
    hierarchy: Hierarchy
    n_before: int
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(["Report of an extension", *map(describe, self.extensions.to_dict("records"))])

    @classmethod
    def of(cls, fitted: Sequence[FittedExtension]) -> ExtensionReport:
        """Report on extensions that were fitted one after the other."""
        model = fitted[-1].model
        return cls(
            extensions=pd.DataFrame([extension_row(extended) for extended in fitted]),
            likelihood=likelihood_table(fitted, model),
            genes=genes_table(model, [extended.extension.name for extended in fitted]),
            hierarchy=model.hierarchy,
            n_before=len(model.extensions) - len(fitted),
            provenance=fitted[0].extension.provenance,
        )

    def _write_tables(self, folder: Path) -> None:
        tables = {"extensions": self.extensions, "likelihood": self.likelihood, "type_specific_genes": self.genes}
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def extension_row(fitted: FittedExtension) -> dict[str, Any]:
    """Where a type joined the tree, and how well the model expresses it.

    Log likelihoods are evidence lower bounds, means over held-out cells; ``gain`` is what the type-specific decoder
    adds.
    """
    extension = fitted.extension
    attachment, name = extension.attachment, extension.name
    gain = fitted.after - fitted.before
    return {
        "cell_type": name,
        "n_cells": extension.n_cells,
        "n_populations": len(extension.moments.populations),
        "node": fitted.model.hierarchy.by_name[name].parent,
        "attachment_branch": attachment.branch,
        "level": attachment.level,
        "support": extension.support,
        "nearest": fitted.distance.index[0],
        "distance": float(fitted.distance.iloc[0]),
        "new_batches": "; ".join(extension.batches),
        "log_likelihood_before": float(fitted.before.mean()),
        "log_likelihood_after": float(fitted.after.mean()),
        "gain": float(gain.mean()),
        "gain_error": float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("nan"),
        "held_out": fitted.held_out,
        "n_held_out": len(gain),
        "n_counts": fitted.n_counts,
        "type_specific_genes": ", ".join(display_names(type_specific_genes(fitted.model, name).head().reset_index())),
    }


def likelihood_table(fitted: Sequence[FittedExtension], model: BranchedModel) -> pd.DataFrame:
    """Log likelihood of a held-out cell of each type, in nats, for new types before and after their extension.

    ``stage`` is ``model`` for types that the model was fitted with, else ``before`` or ``after``.
    """
    known = model.autoencoder.likelihood.rename_axis("cell_type").reset_index().assign(stage="model")
    rows = [known] + [
        pd.DataFrame(
            {
                "cell_type": [extended.extension.name],
                "stage": [stage],
                "log_likelihood": [float(bounds.mean())],
                "n_counts": [extended.n_counts],
            }
        )
        for extended in fitted
        for stage, bounds in (("before", extended.before), ("after", extended.after))
    ]
    table = pd.concat(rows, ignore_index=True)
    table["per_1000_counts"] = 1000 * table["log_likelihood"] / table["n_counts"]
    return table[["cell_type", "stage", "log_likelihood", "n_counts", "per_1000_counts"]]


def genes_table(model: BranchedModel, cell_types: Iterable[str]) -> pd.DataFrame:
    """Genes that each type-specific decoder changes most, see :func:`bdm.model.model.type_specific_genes`."""
    parts = []
    for cell_type in cell_types:
        genes = type_specific_genes(model, cell_type)
        genes = genes[genes["log2_fold_change"].abs() >= MIN_CHANGE].head(N_GENES).reset_index()
        genes.insert(0, "cell_type", cell_type)
        parts.append(genes)
    return pd.concat(parts, ignore_index=True)


def summary(fitted: FittedExtension) -> str:
    """Describe in words where a type joined the tree, and whether the model could express it before."""
    return describe(extension_row(fitted))


def describe(row: Mapping[str, Any]) -> str:
    """Describe a type by its row of ``extensions.csv``."""
    divided = f", {row['n_populations']} sub-populations" if row["n_populations"] > 1 else ""
    support = "" if pd.isna(row["support"]) else f" (support {row['support']:.0%})"
    cells = counted(row["n_cells"], "cell")
    where = (
        f"{row['cell_type']} ({cells}{divided}) leaves branch {row['attachment_branch']} at noise level "
        f"{row['level']:.2f}{support}."
    )
    nearest = f"The nearest type is {row['nearest']}, {row['distance']:.1f} within-type standard deviations away."
    return f"{where} {nearest} {verdict(row)}"


def verdict(row: Mapping[str, Any]) -> str:
    """Describe in words what the type-specific decoder of a type adds, by its :func:`extension_row`."""
    gain, error, n_cells = row["gain"], row["gain_error"], row["n_held_out"]
    cell, remark = HELD_OUT[row["held_out"]]
    if n_cells < MIN_HELD_OUT:
        cells = counted(n_cells, cell) + (f", {remark}" if remark else "")
        return f"With {cells}, the gain of the type-specific decoder cannot be compared with chance."
    if gain <= 2 * error:
        return "The model expressed it before as well as with a type-specific decoder."
    cell += f" ({remark})" if remark else ""
    return (
        f"The model could not express it before: the type-specific decoder raises the log likelihood of a {cell} "
        f"by {gain:.1f} ± {error:.1f} nats, to {row['log_likelihood_after']:.1f}, above all through "
        f"{row['type_specific_genes']}."
    )
