"""Score types learned from few cells, and classifiers trained with generated cells.

Models differ in the training cells of the named types: across models, each type has each number of cells once.
Left-out cells and test cells are unseen. Half of them are compared with generated cells, and with the other half as the
floor.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from anndata import AnnData
from augment import f1_of_types, strategies
from cells import made_rare
from tidy import write_rows

from bdm.data.cells import FLOOR, Cells, split_in_halves
from bdm.data.prepare import read_prepared
from bdm.evaluation.metrics import cross_validated_probabilities, forest, joint_components, linear_classifier
from bdm.evaluation.scores import auc
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.fit_model import fit
from bdm.settings import FitSettings, GenerationSettings

CLASSIFIER = "logistic regression"


def aucs(query: Cells, test: Cells, *, seed: int) -> dict[str, float]:
    """Compute forest and gene AUC of query cells against test cells."""
    components = joint_components(query.expression, test.expression, seed=seed)
    return {
        "forest_auc": auc(*cross_validated_probabilities(forest(seed=seed), *components, seed=seed)),
        "gene_auc": auc(
            *cross_validated_probabilities(linear_classifier(), query.expression, test.expression, seed=seed)
        ),
    }


def scores_of_model(prepared: AnnData, n_cells: dict[str, int], *, seed: int) -> list[dict[str, object]]:
    """Fit a model with ``n_cells`` of some types, and score these types."""
    cells = prepared
    for name, n in n_cells.items():
        cells = made_rare(cells, name, n, seed=seed)
    unseen = Cells.from_anndata(prepared[~prepared.obs_names.isin(cells.obs_names[cells.obs["split"] != "test"])])
    model, _ = fit(cells, FitSettings(), seed=seed)
    training, test = (Cells.from_anndata(cells[(cells.obs["split"] == "test") == held_out]) for held_out in (0, 1))
    n_added = (int(training.n_by_type.median()) - pd.Series(n_cells)).clip(lower=0)
    rows = []
    for name, n in n_cells.items():
        half, other_half = split_in_halves(unseen[unseen.cell_type == name], seed=seed)
        n_generated = max(len(half), n_added[name])
        request = request_cells(model, {name: n_generated})
        generated = Cells.from_anndata(generate_cells(model, request, GenerationSettings(), seed=seed))
        trained = strategies(training, {"branched": generated}, n_added[[name]], seed=seed)
        by_method = {
            ("branched", "n_compared"): len(half),
            **{
                (method, score): value
                for method, query in ((FLOOR, other_half), ("branched", generated[slice(len(half))]))
                for score, value in aucs(query[slice(len(half))], half, seed=seed).items()
            },
            **{
                (method, "f1"): f1_of_types(trained[method], CLASSIFIER, test, [name], seed=seed)[0]
                for method in ("balanced", "branched")
            },
        }
        rows += [
            {"method": method, "cell_type": name, "n_train": n, "score": score, "value": value}
            for (method, score), value in by_method.items()
        ]
    return rows


def main(
    prepared: Path,
    out: Path,
    *,
    cell_type: Annotated[list[str], typer.Option()],
    n_cells: Annotated[list[int], typer.Option()] = [20, 50, 100, 200],  # noqa: B006
    seed: int = 0,
) -> None:
    """Write the scores by type, number of training cells and method."""
    cells = read_prepared(prepared)
    rows = [
        row
        for shift in range(len(n_cells))
        for row in scores_of_model(
            cells,
            {name: n_cells[(place + shift) % len(n_cells)] for place, name in enumerate(cell_type)},
            seed=seed,
        )
    ]
    write_rows(pd.DataFrame(rows), out)


if __name__ == "__main__":
    typer.run(main)
