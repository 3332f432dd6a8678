import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
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
from bdm.threads import using_threads
from bdm.training import fabric
from bdm.transmutation.goal import Goal, Pair
from bdm.transmutation.sources import sources_of
from bdm.transmutation.transmute import transmute_cells

if TYPE_CHECKING:
    from bdm.evaluation.evaluate import Evaluation
    from bdm.evaluation.inputs import RealCells
    from bdm.extension.extend import Extended
    from bdm.interpretation.interpret import Interpretation
    from bdm.transmutation.evaluate import MoveEvaluation


Method = TypeVar("Method", bound=Callable)


@dataclass(frozen=True)
class Settings(LearningSettings):
    """Settings of every stage from raw counts to the model."""

    prepare: PrepareSettings = field(default=PrepareSettings(test=0.0))


def computing(method: Method) -> Method:
    """Let a method compute with the model's number of threads."""

    @functools.wraps(method)
    def run(self: "BranchedDiffusion", *arguments: object, **options: object) -> object:
        with using_threads(self.n_threads):
            return method(self, *arguments, **options)

    return run


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
    n_threads
        Threads to compute with; all that the process may use, if not given. Results do not depend on their number.

    Raises
    ------
    InputError
        If the data cannot be learnt from, or ``tree`` is of other types; the message says why.

    Attributes
    ----------
    interpretation
        What :meth:`interpret` found, for :mod:`bdm.pl` to draw.
    learnt
        What the last :meth:`extend` learnt, type by type, for :mod:`bdm.pl` to draw.
    """

    prepared: AnnData | None = None
    fitted: BranchedModel | None = None
    interpretation: "Interpretation | None" = None
    learnt: "tuple[Extended, ...]" = ()
    n_threads: int | None = None

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
        n_threads: int | None = None,
    ):
        preparing = replace(settings.prepare, label_key=label_key, batch_key=batch_key, seed=seed)
        with using_threads(n_threads):
            self.prepared = prepare(adata, preparing)
        if tree is not None:
            tree = match_leaves(tree, tuple(self.prepared.obs["cell_type"].cat.categories))
        self.settings = settings
        self.tree = tree
        self.seed = seed
        self.device = device
        self.n_threads = n_threads

    @computing
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
        self.interpretation, self.learnt = None, ()
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

    @computing
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

    @computing
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

    @computing
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
        self.interpretation, self.learnt = None, ()
        for found in extend_all(self.model, new, settings, seed=seed, provenance=record):
            self.fitted, self.learnt = found.model, (*self.learnt, found)
        return self

    @computing
    def evaluate(
        self,
        adata_test: AnnData | None = None,
        adata_new: AnnData | None = None,
        *,
        beside: Mapping[str, AnnData] | None = None,
        label_key: str | None = None,
        n_repeats: int = 3,
        seed: int = 0,
    ) -> "Evaluation":
        """Judge generated cells by held-out real cells, with real training cells beside them as the floor.

        Parameters
        ----------
        adata_test
            Cells that the model has not learnt from, with raw counts; those that ``settings.prepare.test`` kept, if not
            given.
        adata_new
            Cells to judge, named ``branched``; new ones, as many of each type as there are test cells, if not given.
        beside
            Other cells to judge in the same way, by name.
        label_key
            Column of ``obs`` with the cell types; that of the model's data, or ``cell_type``, if not given.
        n_repeats
            Draws of cells over which scores are averaged.

        Returns
        -------
        Scores as tables: ``overall`` (scores x sets, the floor first) and ``by_type``; for :func:`bdm.pl.scores` to
        draw.

        Raises
        ------
        InputError
            If there are too few cells to compare, genes are missing, the model was loaded and so holds no training
            cells, or it is not fitted.

        Examples
        --------
        ::

            evaluation = model.evaluate(adata_test)
            evaluation.overall.loc[["energy", "forest_auc", "f1"]]
            bdm.pl.scores(evaluation)
        """
        from bdm.evaluation.evaluate import EvaluationSettings, evaluate
        from bdm.evaluation.inputs import check_number
        from bdm.evaluation.sets import TAKEN
        from bdm.model.match import known_cells

        if taken := set(TAKEN) & set(beside or {}):
            raise InputError(f"The name {taken.pop()} is taken; choose another for the cells to judge.")
        real = self._real_cells(adata_test, label_key=label_key)
        if adata_new is None:
            adata_new = self.generate(real.test.n_by_type.to_dict(), seed=seed)
        sets = {"branched": adata_new, **(beside or {})}
        cells = {name: known_cells(adata, self.model, label_key) for name, adata in sets.items()}
        for name, of_set in cells.items():
            check_number(of_set.n_by_type, real.test.n_by_type, name)
        return evaluate(real.training, real.test, cells, EvaluationSettings(n_repeats=n_repeats), seed=seed)

    @computing
    def evaluate_transmuted(
        self,
        adata_moved: AnnData,
        adata: AnnData,
        adata_test: AnnData | None = None,
        *,
        label_key: str | None = None,
        seed: int = 0,
    ) -> "MoveEvaluation":
        """Judge transmuted cells by held-out real cells of their new type, and by what each was before.

        Parameters
        ----------
        adata_moved
            Cells that :meth:`transmute` moved.
        adata
            The cells that it moved.
        adata_test
            As in :meth:`evaluate`.

        Returns
        -------
        Scores as a ``table``, for :func:`bdm.pl.transmutation` to draw.

        Raises
        ------
        InputError
            If the cells are not found by name among those before, or there are too few real cells to judge by.

        Examples
        --------
        ::

            adata_moved = model.transmute(adata, to="NK")
            moves = model.evaluate_transmuted(adata_moved, adata, adata_test)
            bdm.pl.transmutation(moves)
        """
        from bdm.evaluation.cells import Cells
        from bdm.model.match import known_cells
        from bdm.transmutation.evaluate import MovedCells, evaluate_moves
        from bdm.transmutation.inputs import moved_to, places_before

        real = self._real_cells(adata_test, label_key=label_key)
        places = places_before(adata_moved, adata.obs_names, names=("adata_moved", "adata"))
        before = known_cells(adata[places], self.model, label_key)
        moved = MovedCells(Cells.of(adata_moved[:, real.genes]), before)
        return evaluate_moves(real, {"branched": moved}, moved_to(adata_moved, "adata_moved"), seed=seed)

    def _real_cells(self, adata_test: AnnData | None, *, label_key: str | None) -> "RealCells":
        """Training cells, and test cells: those given, or those that were kept when the data were prepared."""
        from bdm.evaluation.cells import Cells
        from bdm.evaluation.inputs import RealCells, check_number
        from bdm.model.match import known_cells

        if self.prepared is None:
            raise InputError("A loaded model holds no training cells to compare with; use the command bdm evaluate.")
        genes = self.model.autoencoder.genes.index
        is_test = (self.prepared.obs["split"] == "test").to_numpy()
        if adata_test is None and not is_test.any():
            raise InputError("No cells were kept to judge by; give adata_test, cells that the model has not learnt.")
        kept = Cells.of(self.prepared[:, genes])
        test = kept[np.flatnonzero(is_test)] if adata_test is None else known_cells(adata_test, self.model, label_key)
        training = kept[np.flatnonzero(~is_test)]
        check_number(training.n_by_type // 2, test.n_by_type, "Half of the training cells")
        return RealCells(training, test, self.model.gene_names)

    @computing
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
        generated = self.generate(numbers_like(self.prepared.obs, self.model), seed=seed)
        inputs = inputs_of(self.model, self.prepared, generated, seed=seed)
        self.interpretation = interpret(inputs, InterpretationSettings(n_genes=n_genes), seed=seed)
        return branches_adata(self.interpretation)

    def save(self, path: Path | str) -> None:
        """Write the model as a folder of safetensors and JSON."""
        with written_whole(Path(path), folder_of="model.json") as folder:
            save_model(folder, self.model)

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto", n_threads: int | None = None) -> "BranchedDiffusion":
        """Read a model that :meth:`save` or ``bdm train`` wrote.

        Raises
        ------
        InputError
            If the folder holds no model, or is damaged.
        """
        model = cls.__new__(cls)
        model.device = device
        model.n_threads = n_threads
        model.fitted = load_model(Path(path), device=fabric(device).device)
        return model
