from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
from anndata import AnnData

from bdm.data.prepare import PrepareSettings, prepare
from bdm.diffusion.walk import SamplerSettings
from bdm.errors import InputError
from bdm.extension.extend import ExtendSettings, extend_all
from bdm.extension.new_cells import joined, new_cells
from bdm.files import written_whole
from bdm.generation.generate import generate_cells
from bdm.generation.request import numbers_like, request_cells
from bdm.hierarchy.topology import Clade, match_leaves
from bdm.hierarchy.tree import Hierarchy
from bdm.model.learn import Checkpoints, LearningSettings, learn
from bdm.model.model import BranchedModel, load_model, save_model
from bdm.provenance import provenance, storable
from bdm.training import fabric
from bdm.transmutation.goal import Goal, Pair
from bdm.transmutation.sources import sources_of
from bdm.transmutation.transmute import transmute_cells


@dataclass(frozen=True)
class Settings(LearningSettings):
    """Settings of every stage from raw counts to the model."""

    prepare: PrepareSettings = field(default=PrepareSettings(test=0.0))


class BranchedDiffusion:
    """Hierarchically branched diffusion model of labelled single-cell counts.

    ::

        model = bdm.BranchedDiffusion(adata, label_key="cell_type")
        model.fit()
        adata_new = model.generate(1000)
        model.save("model")

    Parameters
    ----------
    adata
        Cells with raw counts in ``layers['counts']``, ``raw`` or ``X``; all are learnt from.
    label_key, batch_key
        Columns of ``obs`` with the cell type and, if any, the batch.
    tree
        Hierarchy of cell types to use in place of the one that is found.

    Raises
    ------
    InputError
        If the data cannot be learnt from, or ``tree`` is of other types; the message says why.
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        label_key: str = "cell_type",
        batch_key: str | None = None,
        tree: Clade | None = None,
        settings: Settings = Settings(),
        seed: int = 0,
        device: str = "auto",
    ):
        preparing = replace(settings.prepare, label_key=label_key, batch_key=batch_key, seed=seed)
        self.prepared: AnnData | None = prepare(adata, preparing)
        if tree is not None:
            tree = match_leaves(tree, tuple(self.prepared.obs["cell_type"].cat.categories))
        self.settings = settings
        self.tree = tree
        self.seed = seed
        self.device = device
        self.fitted: BranchedModel | None = None

    def fit(self, *, checkpoints: Checkpoints | None = None) -> "BranchedDiffusion":
        """Train the autoencoder, find the hierarchy, and train the denoiser; returns the model itself.

        Parameters
        ----------
        checkpoints
            Where each training goes on from, if it was interrupted.
        """
        if self.prepared is None:
            raise InputError("A loaded model holds no cells to fit; make a new one from an AnnData.")
        how = {"tree": self.tree, "seed": self.seed, "device": self.device, "checkpoints": checkpoints or Checkpoints()}
        self.fitted = learn(self.prepared, self.settings, **how)
        return self

    @property
    def model(self) -> BranchedModel:
        """The fitted model.

        Raises
        ------
        InputError
            Before :meth:`fit`.
        """
        if self.fitted is None:
            raise InputError("The model is not fitted yet; call fit() first.")
        return self.fitted

    @property
    def hierarchy(self) -> Hierarchy:
        """The hierarchy of cell types, with the noise levels of its branches."""
        return self.model.hierarchy

    def generate(
        self,
        cells: int | Mapping[str, int] | pd.DataFrame,
        *,
        shared_ancestors: bool = False,
        stochastic: bool = False,
        n_levels: int = 12,
        seed: int = 0,
    ) -> AnnData:
        """Generate new cells, as raw counts.

        Parameters
        ----------
        cells
            Number of cells of every type; numbers by type; or a table with columns ``cell_type``, ``n_cells`` and maybe
            ``batch``.
        shared_ancestors
            Let cell i of every type descend from one sample of the root: matched cells, in less time.
        stochastic
            Add fresh noise on the way down, in place of following the probability-flow ODE.

        Returns
        -------
        AnnData as :func:`bdm.generation.generate.generate_cells` makes it.

        Raises
        ------
        InputError
            If a type or batch is unknown, a number is negative, or the model is not fitted.
        """
        settings = SamplerSettings(n_levels=n_levels, stochastic=stochastic)
        request = request_cells(self.model, cells)
        adata = generate_cells(self.model, request, settings, seed=seed, shared_ancestors=shared_ancestors)
        facts = {"settings": {**asdict(settings), "shared_ancestors": shared_ancestors}}
        record = provenance(seed=seed, request=request.table.to_dict("list"), **facts)
        adata.uns["bdm"] = storable(record)
        return adata

    def transmute(
        self,
        adata: AnnData,
        to: str,
        *,
        from_: Sequence[str] = (),
        like: Mapping[str, str] | None = None,
        label_key: str | None = None,
        stochastic: bool = False,
        n_levels: int = 12,
        seed: int = 0,
    ) -> AnnData:
        """Move cells to another cell type.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, and their types in ``obs``.
        to
            Cell type to move to.
        from_
            Cell types to move; all others than ``to`` if none are named.
        like
            Types that made such a move, old to new. The model need then not know ``to``: cells go as these types went,
            and most as those nearest to their own.
        label_key
            Column of ``obs`` with the cell types; that of the model's data, or ``cell_type``, if not given.
        stochastic
            Noise cells up to the common ancestor, in place of following the probability-flow ODE: a population like
            theirs, in which no cell keeps its place.

        Returns
        -------
        AnnData as :func:`bdm.transmutation.transmute.transmute_cells` makes it.

        Raises
        ------
        InputError
            If types, genes or batches do not fit the model, or the model is not fitted.
        """
        settings = SamplerSettings(n_levels=n_levels, stochastic=stochastic)
        goal = Goal(to, tuple(Pair(old, new) for old, new in (like or {}).items()))
        sources = sources_of(adata, self.model, goal, cell_types=tuple(from_), label_key=label_key)
        moved = transmute_cells(self.model, sources, goal, settings, seed=seed)
        asked = {"to": to, "from": list(from_), "like": dict(like or {})}
        moved.uns["bdm"] = storable(provenance(seed=seed, settings={**asdict(settings), **asked}))
        return moved

    def extend(
        self,
        adata: AnnData,
        *,
        cell_types: Sequence[str] = (),
        update: Sequence[str] = (),
        label_key: str | None = None,
        missing_as_zero: bool = False,
        seed: int = 0,
    ) -> "BranchedDiffusion":
        """Add cell types, or learn known ones anew, without a change to others; returns the model itself.

        Parameters
        ----------
        adata
            Cells of the new types with raw counts of the model's genes, matched by name or identifier, and their types
            in ``obs``.
        cell_types
            Types to add, in this order; all that the model lacks if none are named, nor any to update.
        update
            Known types to learn anew from these cells.
        label_key
            Column of ``obs`` with the cell types; that of the model's data, or ``cell_type``, if not given.
        missing_as_zero
            Take genes that the cells lack as not expressed.

        Raises
        ------
        InputError
            If there is nothing to learn, a type is known that should be new or the other way round, has too few cells,
            or genes are missing.
        """
        settings = ExtendSettings()
        new = new_cells(
            adata,
            self.model,
            cell_types=tuple(cell_types),
            update=tuple(update),
            label_key=label_key,
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        record = provenance(seed=seed, settings=asdict(settings))
        if self.prepared is not None:
            self.prepared = joined(new, self.model, self.prepared)
        for found in extend_all(self.model, new, settings, seed=seed, provenance=record):
            self.fitted = found.model
        return self

    def interpret(self, *, n_genes: int = 20, seed: int = 0) -> AnnData:
        """Find the genes that part the children of each node, and compare them with real cells.

        Parameters
        ----------
        n_genes
            Top genes of each branch that are compared.

        Returns
        -------
        AnnData of branches x genes, as :func:`bdm.interpretation.branches.branches_adata` makes it, for scanpy to plot.

        Raises
        ------
        InputError
            If the model was loaded and so holds no cells, or is not fitted.
        """
        from bdm.interpretation.branches import branches_adata
        from bdm.interpretation.inputs import inputs_of
        from bdm.interpretation.interpret import InterpretationSettings, interpret

        if self.prepared is None:
            raise InputError("A loaded model holds no cells to compare with; use the command bdm interpret.")
        generated = self.generate(numbers_like(self.prepared.obs, label_key="cell_type"), seed=seed)
        inputs = inputs_of(self.model, self.prepared, generated, seed=seed)
        return branches_adata(interpret(inputs, InterpretationSettings(n_genes=n_genes), seed=seed))

    def save(self, path: Path | str) -> None:
        """Write the model as a folder of safetensors and JSON."""
        with written_whole(Path(path), folder_of="model.json") as folder:
            save_model(folder, self.model)

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto") -> "BranchedDiffusion":
        """Read a model that :meth:`save` or ``bdm train`` wrote.

        Raises
        ------
        InputError
            If the folder holds no model, or is damaged.
        """
        model = cls.__new__(cls)
        model.prepared, model.device = None, device
        model.fitted = load_model(Path(path), device=fabric(device).device)
        return model
