from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.cells import Cells, match, set_name
from bdm.evaluation.evaluate import FLOOR, Evaluation
from bdm.evaluation.figures.looks import Look, looks
from bdm.evaluation.genes import gene_statistics, pooled_fold_changes
from bdm.evaluation.metrics import Agreement
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import IDEAL_LINE


def genes_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one row a generated set, one panel a statistic of genes, against test cells; the floor lies beneath."""
    panels = {name: panels_of(cells, evaluation) for name, cells in evaluation.judged.items()}
    floor = panels.pop(FLOOR)
    styles = looks(evaluation.judged)
    figure = new(figsize=(3.4 * len(floor), 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), len(floor), squeeze=False)
    for row, name in zip(axes, panels, strict=True):
        for axis, (title, agreement) in zip(row, panels[name].items(), strict=True):
            draw_genes(axis, floor[title], styles[FLOOR], label=FLOOR)
            draw_genes(axis, agreement, styles[name], label=set_name(name))
            axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
            axis.set(title=title, xlabel="test cells", ylabel=set_name(name))
            axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=2)
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def panels_of(cells: Cells, evaluation: Evaluation) -> dict[str, Agreement]:
    """Compare genes of a set with those of as many test cells, by the title of the panel."""
    matched = match(cells, evaluation.test, seed=evaluation.seed)
    genes = gene_statistics(matched.judged, matched.test)
    return {
        "mean of log1p(CP10k)": genes.mean,
        "variance of log1p(CP10k)": genes.variance,
        "fraction of zeros": genes.zero_fraction,
        "log2 fold change of markers": pooled_fold_changes(matched.judged, matched.test, evaluation.markers),
    }


def draw_genes(axis: Axes, agreement: Agreement, look: Look, *, label: str) -> None:
    """Draw one point a gene."""
    axis.plot(
        agreement.test,
        agreement.judged,
        look.marker,
        color=look.colour,
        markersize=2.5,
        markeredgewidth=0,
        alpha=0.6,
        label=f"{label}, r = {agreement.correlation:.3f}",
    )
