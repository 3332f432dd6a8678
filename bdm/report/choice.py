"""Cells, cell types and genes of the input that were selected and left out, in words."""

from math import ceil
from pathlib import Path
from typing import Any

from bdm.evaluation.verdict import LIMITS
from bdm.report.results import Results
from bdm.settings import PrepareSettings

DEFAULTS = PrepareSettings()


def setting(results: Results, name: str) -> Any:
    """Return a setting of ``bdm prepare``."""
    return results.model.autoencoder.provenance.get("prepare", {}).get(name, getattr(DEFAULTS, name))


def genes_chosen(results: Results) -> str:
    """Describe how genes were selected."""
    genes, least = setting(results, "genes"), setting(results, "min_cells_per_gene")
    n_requested, kept = setting(results, "n_genes"), setting(results, "keep_genes")
    among = f"counts in {least:,} training cells or more" if least > 1 else "counts in a training cell"
    if genes == "all":
        return f"all genes with {among}"
    if genes != "seurat_v3":
        return f"{described(genes, 'genes')} with {among}"
    if len(results.genes) < n_requested:
        return (
            f"all genes with {among}, which are fewer than the {n_requested:,} most variable ones requested (seurat_v3)"
        )
    within = ", ranked within batches" if setting(results, "batch_key") else ""
    added = "" if kept is None else f", and {described(kept, 'keep_genes')}"
    variable = f"the {n_requested:,} most variable genes by training cells (seurat_v3{within})"
    return f"{variable}{added}, among those with {among}"


def described(genes: str | list[str], option: str) -> str:
    """Describe the genes of a setting: a file, a list, or the built-in markers."""
    if genes == "markers":
        return "the built-in markers"
    return (
        f"the genes in {Path(genes).name}"
        if isinstance(genes, str)
        else f"the genes named by {option} ({len(genes):,})"
    )


def types_left_out(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of cell types that were left out: name, number of cells, and reason."""
    least = setting(results, "min_cells_per_type")
    reasons = {
        "leave_out": "left out on request (leave_out)",
        "min_cells_per_type": f"fewer than {least:,} cells (min_cells_per_type)",
    }
    left_out = (results.input or {}).get("types_left_out", [])
    return [{**row, "why": reasons.get(row["setting"], row["setting"])} for row in left_out]


def cells_left_out(results: Results) -> list[tuple[int, str]]:
    """Numbers of cells that were left out, of types that were not, with the reasons."""
    if results.input is None:
        return []
    least = setting(results, "min_genes_per_cell")
    reasons = {
        "drop_unlabelled": "without a cell type (drop_unlabelled)",
        "min_genes_per_cell": f"with counts of fewer than {least:,} genes (min_genes_per_cell)",
    }
    found = [(n, reasons.get(name, name)) for name, n in results.input["cells_left_out"].items()]
    known = sum(n for n, _ in found) + sum(row["n_cells"] for row in results.input["types_left_out"])
    if not results.model.extensions:
        found.append((results.input["n_cells"] - known - len(results.cells), "without counts of the chosen genes"))
    return [(n, why) for n, why in found if n > 0]


def cells_for_verdict(results: Results, n_test: int = LIMITS.min_cells) -> int | None:
    """Return how many cells of a type in the input give ``n_test`` test cells; None where there are no test cells."""
    test = setting(results, "test")
    return ceil(n_test / test) if test > 0 else None
