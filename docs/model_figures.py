"""Draw the figures of ``model.md`` from the demo: ``make demo``, then ``.venv/bin/python docs/model_figures.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

import bdm
from bdm.data.prepare import read_prepared
from bdm.plotting.hierarchy_figure import view_of
from bdm.plotting.style import DPI, TYPE_COLOURS

RESULTS, FIGURES = Path("results/pbmc68k"), Path(__file__).parent / "figures"
N_GENES = 60  # in the matrices of counts
LEVELS = (20, 8, 3, 0)  # noise levels of the panels


class Plane:
    """Plane through whitened space with the largest variance of population means."""

    def __init__(self, model: bdm.BranchedDiffusion) -> None:
        self.model = model.model
        self.colours = dict(zip(self.model.cell_types, TYPE_COLOURS, strict=False))
        mean = self.model.moments.mean
        self.centre = mean.mean(dim=0)
        self.axes = torch.linalg.svd(mean - self.centre, full_matrices=False)[2][:2].T

    def __call__(self, x: torch.Tensor) -> np.ndarray:
        """Project whitened cells (cells x dimensions) to the plane."""
        return ((x - self.centre) @ self.axes).numpy()

    def draw_cells(self, ax: Axes, x: torch.Tensor, cells: AnnData) -> None:
        """Draw whitened cells in the colours of their types."""
        ax.scatter(*self(x).T, s=5, c=[self.colours[name] for name in cells.obs["cell_type"]], linewidth=0)
        ax.set(xticks=[], yticks=[])

    def draw_populations(self, ax: Axes) -> None:
        """Draw an ellipse of two standard deviations for each population."""
        moments = self.model.moments
        for name, mean, covariance in zip(moments.populations, moments.mean, moments.covariance, strict=True):
            variance, axes = np.linalg.eigh((self.axes.T @ covariance @ self.axes).numpy())
            angle, colour = np.degrees(np.arctan2(*axes[::-1, 0])), self.colours[self.model.cell_type_of[name]]
            width, height = 4 * np.sqrt(variance)
            ax.add_patch(Ellipse(self(mean[None])[0], width, height, angle=angle, fill=False, color=colour, lw=1.5))


def whitened(cells: AnnData, model: bdm.BranchedDiffusion) -> torch.Tensor:
    """Whiten the latents in ``obsm["latent"]`` with the log library sizes, cells x dimensions."""
    log_library_size = np.log(np.asarray(cells.X.sum(axis=1)))
    return model.model.whitening(torch.from_numpy(np.hstack([cells.obsm["latent"], log_library_size])).float())


def sorted_by_type(cells: AnnData, names: tuple[str, ...]) -> AnnData:
    """Sort cells by the position of their type in ``names``."""
    return cells[np.argsort(cells.obs["cell_type"].map(names.index).to_numpy(dtype=int), kind="stable")]


def draw_steps(model: bdm.BranchedDiffusion, real: AnnData, plane: Plane) -> Figure:
    """Draw counts and latents of real and generated cells."""
    names = model.hierarchy.cell_types
    real = sorted_by_type(real, names)
    generated = sorted_by_type(model.generate(real.obs["cell_type"].value_counts(), seed=0), names)
    genes = np.argsort(-np.log1p(real.X.toarray()).var(axis=0))[:N_GENES]
    figure, axes = plt.subplots(1, 7, figsize=(11, 2.9), width_ratios=(4, 1) * 3 + (4,), layout="constrained")
    panels, arrows = axes[::2], axes[1::2]
    for ax, cells, title in ((panels[0], real, "counts"), (panels[3], generated, "new counts")):
        ax.imshow(np.log1p(cells.X[:, genes].toarray()), aspect="auto", cmap="Greys", interpolation="nearest", vmax=4)
        ax.set(xticks=[], yticks=[], xlabel="genes", ylabel="cells, by type", title=title)
    for ax, cells, title in ((panels[1], real, "latents, populations"), (panels[2], generated, "new latents")):
        plane.draw_cells(ax, whitened(cells, model), cells)
        plane.draw_populations(ax)
        ax.set(title=title)
    panels[2].set(xlim=panels[1].get_xlim(), ylim=panels[1].get_ylim())
    for ax, step in zip(arrows, ("encode", "draw", "decode"), strict=True):
        ax.axis("off")
        ax.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "->", "lw": 1.5})
        ax.text(0.5, 0.54, step, ha="center")
    return figure


def draw_noise(model: bdm.BranchedDiffusion, real: AnnData, plane: Plane) -> Figure:
    """Draw cells at decreasing noise levels, above the tree."""
    figure = plt.figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.3))
    x = whitened(real, model)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for ax, level in zip(above.subplots(1, len(LEVELS)), LEVELS, strict=True):
        plane.draw_cells(ax, x + level * noise, real)
        ax.set(title=f"noise level {level}" if level else "no noise")
    ax = below.subplots()
    bdm.pl.hierarchy(model, ax=ax, show=False)
    ax.tick_params(axis="y", pad=8)
    for row, end in enumerate(view_of(model.hierarchy).ends):
        ax.plot(0, row, "o", color=plane.colours[end.cell_types[0]], ms=7, clip_on=False, zorder=4)
    return figure


def main() -> None:
    """Draw and save both figures."""
    model, prepared = bdm.BranchedDiffusion.load(RESULTS / "model"), read_prepared(RESULTS / "prepared.h5ad")
    real = prepared[prepared.obs["split"] != "test"].copy()
    real.obsm["latent"] = model.model.encode(real).X[:, model.model.layout.latent]
    plane = Plane(model)
    for name, draw in (("model_steps", draw_steps), ("model_noise", draw_noise)):
        draw(model, real, plane).savefig(FIGURES / f"{name}.png", dpi=DPI)


if __name__ == "__main__":
    main()
