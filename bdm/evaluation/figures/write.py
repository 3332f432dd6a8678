from pathlib import Path

from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.figures.by_type import by_type_figure
from bdm.evaluation.figures.genes import genes_figure
from bdm.evaluation.figures.overall import overall_figure
from bdm.evaluation.figures.umap import umap_figure
from bdm.plotting.figure import save_figure


def write_figures(folder: Path, evaluation: Evaluation) -> None:
    """Write ``overall.png``, ``by_type.png``, ``genes.png`` and ``umap.png``."""
    figures = {
        "overall": overall_figure(evaluation),
        "by_type": by_type_figure(evaluation),
        "genes": genes_figure(evaluation),
        "umap": umap_figure(evaluation),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
