from pathlib import Path

from bdm.interpretation.interpret import Interpretation
from bdm.plotting.branch_agreement import agreement_figure
from bdm.plotting.branch_genes import branch_genes_figure
from bdm.plotting.commitment import plot_commitment
from bdm.plotting.figure import save_figure
from bdm.plotting.hybrids import hybrids_figure
from bdm.plotting.markers import markers_figure
from bdm.plotting.paths import paths_figure
from bdm.plotting.places import plot_places

FIGURES = {
    "branch_genes": branch_genes_figure,
    "commitment": lambda interpretation: plot_commitment(interpretation).figure,
    "paths": paths_figure,
    "hybrids": hybrids_figure,
    "umap": lambda interpretation: plot_places(interpretation).figure,
    "agreement": agreement_figure,
    "markers": lambda interpretation: markers_figure(
        interpretation.markers, interpretation.hierarchy, labels=interpretation.names.labels
    ),
}


def write_figures(folder: Path, interpretation: Interpretation) -> None:
    """Write each figure as a PNG of its name."""
    for name, draw in FIGURES.items():
        save_figure(draw(interpretation), folder / f"{name}.png")
