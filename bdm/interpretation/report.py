from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm.files import write_json
from bdm.interpretation.agreement import BranchAgreement
from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.interpretation.markers import Markers


def write_report(folder: Path, interpretation: Interpretation, *, provenance: dict[str, Any]) -> None:
    """Write ``interpretation.json``, ``branch_genes.csv``, ``agreement.csv`` and ``markers.csv``."""
    means = overall(interpretation)
    write_json(
        folder / "interpretation.json",
        {"provenance": provenance, "mean_agreement": means.astype(object).where(means.notna(), None).to_dict()},
    )
    tables = {
        "branch_genes": branch_genes(interpretation),
        "agreement": interpretation.agreement,
        "markers": marker_rows(interpretation.markers),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")


def overall(interpretation: Interpretation) -> pd.Series:
    """Mean of each measure over nodes, of the model and of half of the real cells."""
    measures = [column for name in BranchAgreement.__dataclass_fields__ for column in (name, f"{name}_real_half")]
    return interpretation.agreement[measures].mean()


def branch_genes(interpretation: Interpretation) -> pd.DataFrame:
    """List the genes of every branch that are among the top of the model or of real cells, best of the model first."""
    n_genes = interpretation.settings.n_genes
    return pd.concat(
        [genes_of_contrast(of, interpretation.genes, n_genes=n_genes) for of in interpretation.contrasts],
        ignore_index=True,
    )


def genes_of_contrast(of: ContrastGenes, genes: pd.Index, *, n_genes: int) -> pd.DataFrame:
    """List the top genes of one contrast, by the model's rank; NaN where there are too few real cells."""
    contrast, model, real = of.contrast, of.model, of.real
    table = pd.DataFrame(
        {
            "node": contrast.node,
            "level": contrast.level,
            "child": contrast.child,
            "cell_types": "; ".join(contrast.inside),
            "gene": genes,
            "model_log2_fold_change": model.log2_fold_change,
            "model_score": model.score,
            "model_rank": model.rank,
            "real_log2_fold_change": real.log2_fold_change if real else np.nan,
            "real_score": real.score if real else np.nan,
            "real_p_adjusted": real.p_adjusted if real else np.nan,
            "real_rank": pd.array(real.rank if real else [pd.NA] * len(genes), dtype="Int64"),
        }
    )
    top = (table["model_rank"] <= n_genes) | (table["real_rank"] <= n_genes).fillna(False)
    return table[top].sort_values("model_rank")


def marker_rows(markers: Markers) -> pd.DataFrame:
    """List the dots of the marker figure, one row a cell type and gene."""
    marks = {gene: cell_type for cell_type, genes in markers.genes.items() for gene in genes}
    columns = {
        f"{name}_{statistic}": getattr(dots, statistic).stack()
        for name, dots in {"real": markers.real, "generated": markers.generated}.items()
        for statistic in ("mean", "fraction")
    }
    rows = pd.DataFrame(columns).rename_axis(["cell_type", "gene"]).reset_index()
    rows.insert(2, "marker_of", rows["gene"].map(marks))
    return rows


def summary(interpretation: Interpretation) -> str:
    """Tell the mean agreement over nodes as a table for the eye."""
    means = overall(interpretation)
    names = list(BranchAgreement.__dataclass_fields__)
    halves = means[[f"{name}_real_half" for name in names]].to_numpy()
    table = pd.DataFrame({"model": means[names], "half of the real cells": halves})
    return table.to_string(float_format="{:.3f}".format)
