from pathlib import Path
from typing import Any

import pandas as pd

from bdm.data.h5ad import write_h5ad
from bdm.files import write_json
from bdm.interpretation.genes import BranchAgreement
from bdm.interpretation.interpret import QUERIES, Interpretation, column_of
from bdm.interpretation.tables import branch_genes, branches_adata, commitment_rows, marker_rows, node_rows, path_rows
from bdm.provenance import storable

QUERY_NAMES = {"model": "model", "training": "training cells", "equal": "as many as test cells"}


def write_report(folder: Path, interpretation: Interpretation, *, provenance: dict[str, Any]) -> None:
    """Write ``interpretation.json``, the tables as CSV, and all of it for scanpy as ``branches.h5ad``."""
    means = overall(interpretation)
    write_json(
        folder / "interpretation.json",
        {
            "provenance": provenance,
            "held_out": interpretation.held_out,
            "mean_agreement": means.astype(object).where(means.notna(), None).to_dict(),
        },
    )
    tables = {
        "nodes": node_rows(interpretation),
        "branch_genes": branch_genes(interpretation),
        "commitment": commitment_rows(interpretation),
        "paths": path_rows(interpretation),
        "agreement": interpretation.agreement,
        "enrichment": interpretation.enrichment,
        "markers": marker_rows(interpretation.markers),
    }
    for name, table in tables.items():
        table = interpretation.names.with_symbols(table) if "gene" in table else table
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    adata = branches_adata(interpretation)
    adata.uns["bdm"] = storable(provenance)
    write_h5ad(folder / "branches.h5ad", adata)


def overall(interpretation: Interpretation) -> pd.Series:
    """Mean of each measure over nodes, of the model and of the training cells."""
    measures = [column_of(name, judged) for name in BranchAgreement.__dataclass_fields__ for judged in QUERIES]
    return interpretation.agreement[measures].mean()


def summary(interpretation: Interpretation) -> str:
    """Tell the mean agreement with test cells over nodes as a table for the eye."""
    means, names = overall(interpretation), list(BranchAgreement.__dataclass_fields__)
    table = pd.DataFrame(
        {QUERY_NAMES[judged]: means[[column_of(name, judged) for name in names]].to_numpy() for judged in QUERIES},
        index=names,
    )
    return table.to_string(float_format="{:.3f}".format)
