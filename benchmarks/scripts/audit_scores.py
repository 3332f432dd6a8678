"""Compare cells of each method, fitted to the members of each fold of an audit, with cells of other donors."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData, read_h5ad

from bdm.audit.attacks import LEAST_VARIANCE, of_donors
from bdm.audit.folds import MEMBERS, NON_MEMBERS, REFERENCE, Fold, divide
from bdm.audit.settings import AuditSettings
from bdm.data.prepare import read_prepared
from bdm.evaluation.cells import FLOOR, Cells, sample_by_type
from bdm.evaluation.genes import marker_genes, variable_genes
from bdm.evaluation.resampling import SIZE_LIMITS
from bdm.evaluation.scores import Reference, score_cells
from bdm.files import atomic_write

FIDELITY = ("energy", "forest_auc", "gene_auc", "f1", "slope", "fold_change_correlation")
MAX_CELLS = 400  # of a type that are compared


def kept_deviation(generated: Cells, members: Cells, others: Cells, reference: Cells, donor: np.ndarray) -> float:
    """Estimate the share of the deviation of the members' means from all donors that generated cells keep.

    ``sum (g - o) (m - r) / sum (m - o) (m - r)``, where ``g, m, o, r`` are the means of generated cells, members, other
    donors and reference, over cell types and genes, in units of the variance between donors as in the attack by the
    shift of means. It is 1 for copies. It is 0 on average for cells of further donors, and errors that are unrelated to
    donors add nothing on average.
    """
    kept, whole = 0.0, 0.0
    for name in reference.n_by_type.index:
        expression = [cells.expression[cells.cell_type == name] for cells in (generated, members, others, reference)]
        g, m, o, r = (of.mean(axis=0).A1 for of in expression)
        variance = of_donors(expression[-1].toarray(), donor[reference.cell_type == name]).var(axis=0)
        weighted = (m - r) / (variance + LEAST_VARIANCE * variance.mean())
        kept += float((g - o) @ weighted)
        whole += float((m - o) @ weighted)
    return kept / whole


def fidelity(cells: Cells, others: Cells, *, seed: int) -> dict[str, float]:
    """Compare cells with as many cells of donors that no model was fitted to."""
    n_cells = np.minimum(cells.n_by_type.reindex(others.n_by_type.index, fill_value=0), others.n_by_type).clip(
        upper=MAX_CELLS
    )
    test = others[sample_by_type(others, n_cells, seed=seed)]
    reference = Reference(test, marker_genes(others), variable_genes(others), SIZE_LIMITS)
    query = cells[sample_by_type(cells, n_cells, seed=seed + 1)]
    scores = asdict(score_cells(query, reference, seed=seed).overall)
    return {name: scores[name] for name in FIDELITY}


def rows(prepared: AnnData, fold: Fold, generated: dict[str, Cells]) -> Iterator[dict[str, object]]:
    """Yield the scores of the cells of each method, after the floor: cells of the members."""
    cells = Cells.from_anndata(prepared)
    members, others, reference = (cells[fold.rows(part)] for part in (MEMBERS, NON_MEMBERS, REFERENCE))
    donor = fold.unit[fold.rows(REFERENCE)]
    for name, of_method in {FLOOR: members, **generated}.items():
        kept = kept_deviation(of_method, members, others, reference, donor)
        scores = fidelity(of_method, others, seed=0)
        yield {"fold": fold.number, "method": name, **scores, "kept_deviation": kept}


def main(
    prepared: Path, out: Path, cells: Annotated[list[Path], typer.Argument()], *, n_folds: int = 3, seed: int = 0
) -> None:
    """Write a row for each fold and method; files of cells are named ``METHOD/fold-NUMBER.h5ad``."""
    division, found = divide(read_prepared(prepared), AuditSettings(n_folds=n_folds), seed=seed), []
    genes = division.cells.var_names
    for fold in division.folds:
        paths = [path for path in cells if path.stem == f"fold-{fold.number}"]
        generated = {path.parent.name: Cells.from_anndata(read_h5ad(path)[:, genes]) for path in paths}
        found += list(rows(division.cells, fold, generated))
    with atomic_write(out) as path:
        pd.DataFrame(found).to_csv(path, index=False, float_format="%.5f")


if __name__ == "__main__":
    typer.run(main)
