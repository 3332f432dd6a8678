from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from bdm.data.symbols import shown_as
from bdm.extension.extend import FittedExtension
from bdm.model.model import BranchedModel, type_specific_genes

N_GENES, LEAST = 50, 0.1  # genes of a type that are listed, and their least change, log2
FEWEST = 5  # held-out cells to tell a gain from chance by


def write_tables(folder: Path, found: list[FittedExtension], model: BranchedModel) -> None:
    """Write ``extensions.csv``, ``likelihood.csv`` and ``own_genes.csv`` into a folder.

    Parameters
    ----------
    model
        The model before.
    """
    tables = {
        "extensions": pd.DataFrame([extension_row(extended) for extended in found]),
        "likelihood": likelihood_table(found, model),
        "own_genes": genes_table(found[-1].model, learned_types(found)),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def extension_row(found: FittedExtension) -> dict[str, float | str | int | None]:
    """Tell where a type came into the tree, and how well the model expresses it.

    Log likelihoods are bounds of them, means over held-out cells; ``gain`` is what the type's own decoder adds to them,
    and ``gain_error`` its standard error.
    """
    extension = found.extension
    place, cell_type = extension.place, extension.cell_type
    gain = found.after - found.before
    others = found.distance.drop(cell_type, errors="ignore")
    return {
        "cell_type": cell_type,
        "was_known": place is None,
        "n_cells": int(extension.composition.sum()),
        "node": found.model.hierarchy.by_name[cell_type].parent,
        "leaves": place and place.branch,
        "level": place and place.level,
        "support": extension.support,
        "nearest": others.index[0],
        "distance": float(others.iloc[0]),
        "moved": None if place else float(found.distance[cell_type]),
        "new_batches": "; ".join(extension.batches),
        "log_likelihood_before": float(found.before.mean()),
        "log_likelihood_after": float(found.after.mean()),
        "gain": float(gain.mean()),
        "gain_error": float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("nan"),
        "n_held_out": len(gain),
        "n_counts": found.n_counts,
        "own_genes": ", ".join(shown_as(type_specific_genes(found.model, cell_type).head().reset_index())),
    }


def learned_types(found: list[FittedExtension]) -> list[str]:
    """Types that were learnt, in order."""
    return [extended.extension.cell_type for extended in found]


def likelihood_table(found: list[FittedExtension], model: BranchedModel) -> pd.DataFrame:
    """Tell the log likelihood of a held-out cell of each type, known or learnt now.

    Returns
    -------
    Table of ``cell_type``, ``learnt`` (``with the model``, ``before`` or ``after``: by the model as it was, or by the
    type's own autoencoder), ``log_likelihood`` (nats a cell), ``n_counts`` (mean counts of a cell), and
    ``per_1000_counts``.
    """
    known = model.autoencoder.likelihood.rename_axis("cell_type").reset_index().assign(learnt="with the model")
    rows = [known] + [
        pd.DataFrame(
            {
                "cell_type": [extended.extension.cell_type],
                "learnt": [learnt],
                "log_likelihood": [float(bounds.mean())],
                "n_counts": [extended.n_counts],
            }
        )
        for extended in found
        for learnt, bounds in (("before", extended.before), ("after", extended.after))
    ]
    table = pd.concat(rows, ignore_index=True)
    table["per_1000_counts"] = 1000 * table["log_likelihood"] / table["n_counts"]
    return table[["cell_type", "learnt", "log_likelihood", "n_counts", "per_1000_counts"]]


def genes_table(model: BranchedModel, cell_types: Iterable[str]) -> pd.DataFrame:
    """Genes that each type's own decoder changes most, see :func:`bdm.model.model.own_genes`."""
    parts = []
    for cell_type in cell_types:
        genes = type_specific_genes(model, cell_type)
        genes = genes[genes["log2_fold_change"].abs() >= LEAST].head(N_GENES).reset_index()
        genes.insert(0, "cell_type", cell_type)
        parts.append(genes)
    return pd.concat(parts, ignore_index=True)


def summary(found: FittedExtension) -> str:
    """Tell in words where a type came, and how far it lies outside what the model expressed before."""
    return describe(extension_row(found))


def describe(told: dict[str, float | str | int | None]) -> str:
    """Tell the same from the row of a type, as it is in ``extensions.csv``."""
    if told["was_known"]:
        where = (
            f"{told['cell_type']} was learnt anew with {told['n_cells']} more cells; its mean moved by "
            f"{told['moved']:.1f} within-type standard deviations."
        )
    else:
        where = (
            f"{told['cell_type']} ({told['n_cells']} cells) leaves branch {told['leaves']} at noise level "
            f"{told['level']:.2f} (support {told['support']:.0%})."
        )
    nearest = f"The nearest type is {told['nearest']}, {told['distance']:.1f} such deviations away."
    return f"{where} {nearest} {verdict(told)}"


def verdict(told: dict[str, float | str | int | None]) -> str:
    """Tell in words what a decoder of its own is worth to a type, from its :func:`extension_row`."""
    gain, error, n_cells = told["gain"], told["gain_error"], told["n_held_out"]
    if n_cells < FEWEST:
        return f"Whether the model expressed it before cannot be told from {n_cells} held-out cells."
    if gain <= 2 * error:
        return "The model expressed it before as well as with a decoder of its own."
    return (
        f"It lay outside what the model expressed: its own decoder raises the log likelihood of a held-out cell by "
        f"{gain:.1f} ± {error:.1f} nats, to {told['log_likelihood_after']:.1f}, above all by {told['own_genes']}."
    )
