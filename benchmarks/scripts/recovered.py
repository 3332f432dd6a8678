"""Score whether generated cells have the types that were asked for, and the genes that differ between types."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import typer
from differing_genes import genes_that_differ
from tidy import write_rows

from bdm.data.cells import FLOOR, Cells
from bdm.data.prepare import read_prepared
from bdm.evaluation.metrics import linear_classifier
from bdm.evaluation.resamples import match

MIN_CELLS = 20  # test cells of a type, for tests of its genes


def compare_differing_genes(query: Cells, test: Cells, *, seed: int) -> dict[str, float]:
    """Compare the genes that differ in mean between a type and all others, as means over types.

    ``genes found`` are the genes that differ in both sets, as a share of those in test cells; ``other genes`` are the
    genes that differ in query cells alone, as a share of the same number.
    """
    labels = test.types(fewest=MIN_CELLS)
    in_query, in_test = (genes_that_differ(cells, labels) for cells in match(query, test, seed=seed))
    found = [(in_query[label]["de"] & in_test[label]["de"]).sum() / in_test[label]["de"].sum() for label in labels]
    others = [(in_query[label]["de"] & ~in_test[label]["de"]).sum() / in_test[label]["de"].sum() for label in labels]
    return {"genes found": float(np.mean(found)), "other genes": float(np.mean(others))}


def main(prepared: Path, generated: list[Path], out: Path, *, seed: int = 0) -> None:
    """Write the scores of each method; the floor is test cells for labels, and training cells for genes."""
    adata = read_prepared(prepared)
    training, test = (Cells.from_anndata(adata[(adata.obs["split"] == "test") == held_out]) for held_out in (0, 1))
    classifier = linear_classifier().fit(training.expression.toarray(), training.cell_type)
    sets = {path.stem: Cells.from_anndata(ad.read_h5ad(path)) for path in generated}
    rows = []
    for method, (labelled, cells) in {FLOOR: (test, training), **{name: (c, c) for name, c in sets.items()}}.items():
        predicted = classifier.predict(labelled.expression.toarray())
        scores = {"labels recovered": float(np.mean(predicted == labelled.cell_type))}
        scores |= compare_differing_genes(cells, test, seed=seed)
        rows += [{"method": method, "score": score, "value": value} for score, value in scores.items()]
    write_rows(pd.DataFrame(rows), out)


if __name__ == "__main__":
    typer.run(main)
