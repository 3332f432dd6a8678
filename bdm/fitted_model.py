"""What a fitted model does: encode, generate and transmute cells, evaluate and interpret."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.computing import computing
from bdm.errors import InputError
from bdm.generation.generate import generated_cells
from bdm.generation.like import OriginalCells, with_schema
from bdm.generation.request import numbers_like, request_cells
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import encode
from bdm.model.fitted_cells import real_cells_for
from bdm.model.generated_file import record_of_cells
from bdm.model.match import encodable, keys_found_in, known_cells
from bdm.model.model import BranchedModel
from bdm.model.populations import populations_by
from bdm.settings import EvaluationSettings, GenerationSettings, InputKeys, InterpretationSettings, SamplerSettings
from bdm.text import type_names
from bdm.transmutation.left_out import report_errors
from bdm.transmutation.request import Goal, Pair, sources_of
from bdm.transmutation.transmute import transmute_cells

if TYPE_CHECKING:
    from bdm.evaluation.results import Evaluation
    from bdm.interpretation.results import Interpretation
    from bdm.transmutation.results import TransmutationEvaluation


class FittedModel:
    """A model with its cells; :class:`bdm.api.BranchedDiffusion` fits, extends, saves and loads it.

    Attributes
    ----------
    prepared
        Cells that the model is fitted on, made by :func:`bdm.data.prepare.prepare`; None if it was loaded without them.
    fitted
        None before the fit.
    interpretation
        The last result of :meth:`interpret`, for :mod:`bdm.pl` to plot.
    n_threads
        Threads to compute with; all that the process may use, if None.
    """

    prepared: AnnData | None = None
    fitted: BranchedModel | None = None
    interpretation: "Interpretation | None" = None
    n_threads: int | None = None

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

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the cell types, in the order of the tree's leaves once there is one."""
        if self.fitted is not None:
            return self.hierarchy.cell_types
        return tuple(self._cells().obs["cell_type"].cat.categories)

    def _cells(self) -> AnnData:
        """Give the prepared cells of the model.

        Raises
        ------
        InputError
            If the model was loaded without them.
        """
        if self.prepared is None:
            raise InputError(
                "A loaded model holds no cells; give the cells that it was fitted on, as in "
                "BranchedDiffusion.load(path, adata=adata)."
            )
        return self.prepared

    @computing
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        label_key: str | None = None,
        batch_key: str | None = None,
        counts: str | None = None,
    ) -> np.ndarray:
        """Encode cells: the means of their posteriors in the latent space of the autoencoder.

        Parameters
        ----------
        adata
            Cells of the model's cell types with raw counts of its genes; the cells that the model was fitted on, if not
            given.
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as in the model's data,
            if not given.

        Returns
        -------
        Array of cells x latent dimensions, in the order of ``adata``, for ``adata.obsm``.

        Raises
        ------
        InputError
            If a cell has a type or a batch that the model lacks, or no counts, or genes are missing.
        """
        if adata is None:
            cells = self._cells()
        else:
            keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
            cells = encodable(adata, self.model, keys)
        return np.asarray(encode(cells, self.model.autoencoder).X)[:, self.model.layout.latent]

    @computing
    def generate(
        self,
        cells: int | Mapping[str, int] | pd.Series | pd.DataFrame | None = None,
        *,
        like: AnnData | None = None,
        shared_ancestors: bool = GenerationSettings.shared_ancestors,
        stochastic: bool = SamplerSettings.stochastic,
        n_levels: int = SamplerSettings.n_levels,
        seed: int = 0,
    ) -> AnnData:
        """Generate new cells, as raw counts.

        Parameters
        ----------
        cells
            Number of cells of every type; numbers by type; or a table with the columns ``cell_type``, ``n_cells`` and,
            if any, ``batch``. Types are cell types, whose cells are spread over their sub-populations as the training
            cells are, or sub-populations. As many of each type as ``like`` has, if not given.
        like
            Original cells, whose columns of CELLxGENE's schema the generated cells receive.
        shared_ancestors
            Let cell i of every population (`ancestor` in `obs`) descend from the same sample at the root, in less time.
        stochastic
            Add fresh noise at every level, in place of following the probability-flow ODE.
        n_levels
            Noise levels between pure noise and a cell.

        Returns
        -------
        AnnData as :func:`bdm.generation.generate.generate_cells` makes it.

        Raises
        ------
        InputError
            If a type or batch is unknown, a number is negative, neither ``cells`` nor ``like`` is given, ``like`` lacks
            columns, or the model is not fitted.
        """
        if cells is None:
            if like is None:
                raise InputError("Give the number of cells, or the cells that they are to be like, by `like=`.")
            cells = numbers_like(like.obs, self.model)
        settings = GenerationSettings(n_levels=n_levels, stochastic=stochastic, shared_ancestors=shared_ancestors)
        request = request_cells(self.model, cells)
        generated = generated_cells(self.model, request, settings, seed=seed, shared_ancestors=shared_ancestors)
        if like is not None:
            generated = with_schema(generated, OriginalCells.of(like, self.model), self.model, request, seed=seed)
        adata = generated.in_memory()
        requested = request.table.to_dict("list")
        adata.uns["bdm"] = record_of_cells(self.model, None, seed=seed, request=requested, settings=asdict(settings))
        return adata

    @computing
    def transmute(
        self,
        adata: AnnData,
        to: str,
        from_: str | Sequence[str] = (),
        *,
        like: Mapping[str, str] | None = None,
        label_key: str | None = None,
        batch_key: str | None = None,
        counts: str | None = None,
        stochastic: bool = SamplerSettings.stochastic,
        n_levels: int = SamplerSettings.n_levels,
        seed: int = 0,
    ) -> AnnData:
        """Transmute cells to another cell type or sub-population.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, and their types in ``obs``.
        to
            Cell type to transmute to, or one of the sub-populations of a type.
        from_
            Cell type or types to transmute; all but ``to`` if none are given.
        like
            Pairs of known types, old to new, whose differences the cells are transmuted by, mostly by the pairs nearest
            to their own type. The model may then lack ``to``. The error of each pair by the others is printed, with a
            warning where the cells are no nearer than unchanged ones.
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as in the model's data,
            if not given.
        stochastic
            Noise cells up to the common ancestor, in place of following the probability-flow ODE: the population stays
            the same, but no cell keeps its place in it.

        Returns
        -------
        AnnData as :func:`bdm.transmutation.transmute.transmute_cells` makes it.

        Raises
        ------
        InputError
            If types, genes or batches do not fit the model, or the model is not fitted.
        """
        settings = SamplerSettings(n_levels=n_levels, stochastic=stochastic)
        goal = Goal(str(to), tuple(Pair(str(old), str(new)) for old, new in (like or {}).items()))
        keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
        cell_types = type_names(from_)
        sources = sources_of(adata, self.model, goal, keys, cell_types=cell_types)
        report_errors(self.model, goal.like, seed=seed)
        transmuted = transmute_cells(self.model, sources, goal, settings, seed=seed)
        request = {"to": goal.to, "from": list(cell_types), "like": dict(goal.like)}
        transmuted.uns["bdm"] = record_of_cells(self.model, None, seed=seed, settings={**asdict(settings), **request})
        return transmuted

    @computing
    def evaluate(
        self,
        adata_test: AnnData | None = None,
        adata_new: AnnData | None = None,
        *,
        compare: Mapping[str, AnnData] | None = None,
        label_key: str | None = None,
        counts: str | None = None,
        n_repeats: int = EvaluationSettings.n_repeats,
        seed: int = 0,
    ) -> "Evaluation":
        """Compare generated cells with held-out real cells, and with real training cells as the floor.

        Parameters
        ----------
        adata_test
            Cells that the model was not fitted on, with raw counts; the test cells that ``settings.prepare.test`` held
            out, if not given.
        adata_new
            Cells to evaluate, named ``branched``; new ones, as many of each type as there are test cells, if not given.
        compare
            Other cells to evaluate in the same way, by name.
        label_key, counts
            Column of ``obs`` with the cell type, and where the raw counts are; as in the model's data, if not given.
        n_repeats
            Resamples of the cells over which scores are averaged.

        Returns
        -------
        Scores: ``overall`` (scores x sets, the floor first), ``by_type`` and ``by_population``; :mod:`bdm.pl` plots,
        and ``save`` writes them.

        Raises
        ------
        InputError
            If there are too few cells to compare, genes are missing, most test cells are training cells, the model was
            loaded without its cells, or it is not fitted.

        Examples
        --------
        ::

            evaluation = model.evaluate(adata_test)
            evaluation.overall.loc[["energy", "forest_auc", "f1"]]
            bdm.pl.scores(evaluation)
        """
        from bdm.evaluation.cells import GENERATED, RESERVED_SET_NAMES, check_number
        from bdm.evaluation.evaluate import evaluate

        if taken := set(RESERVED_SET_NAMES) & set(compare or {}):
            raise InputError(f"The name {taken.pop()} is taken; choose another for the cells to evaluate.")
        keys, settings = InputKeys(label_key=label_key, counts=counts), EvaluationSettings(n_repeats=n_repeats)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        new = self.generate(real.test.n_by_type.to_dict(), seed=seed) if adata_new is None else adata_new
        sets = {GENERATED: new, **(compare or {})}
        cells = {name: known_cells(adata, self.model, keys_found_in(adata, keys)) for name, adata in sets.items()}
        for name, of_set in cells.items():
            check_number(of_set.n_by_type, real.test.n_by_type, name)
        return evaluate(real, cells, settings, populations=populations_by(self.model), seed=seed)

    @computing
    def evaluate_transmuted(
        self,
        adata_transmuted: AnnData,
        adata: AnnData,
        adata_test: AnnData | None = None,
        *,
        label_key: str | None = None,
        counts: str | None = None,
        seed: int = 0,
    ) -> "TransmutationEvaluation":
        """Compare transmuted cells with held-out real cells of their new type, and with the same cells before.

        Parameters
        ----------
        adata_transmuted
            Cells that :meth:`transmute` returned.
        adata
            The same cells before the transmutation.
        adata_test
            As in :meth:`evaluate`.
        label_key, counts
            As in :meth:`evaluate`, of ``adata`` and ``adata_test``.

        Returns
        -------
        Scores as a ``table``; :func:`bdm.pl.transmutation` and others plot them, and ``save`` writes them as a folder.

        Raises
        ------
        InputError
            If the cells are not found by name among the cells before, or there are too few real cells to compare with.

        Examples
        --------
        ::

            adata_transmuted = model.transmute(adata, to="NK")
            evaluation = model.evaluate_transmuted(adata_transmuted, adata, adata_test)
            bdm.pl.transmutation(evaluation)
        """
        from bdm.evaluation.cells import GENERATED, Cells
        from bdm.transmutation import evaluate as transmutation

        keys = InputKeys(label_key=label_key, counts=counts)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        rows = transmutation.rows_before(adata_transmuted, adata.obs_names, names=("adata_transmuted", "adata"))
        before = known_cells(adata[rows], self.model, keys)
        cells = transmutation.TransmutedCells(Cells.from_anndata(adata_transmuted[:, real.genes]), before)
        new_type = transmutation.new_type(adata_transmuted, "adata_transmuted")
        real, to = transmutation.relabelled(real, new_type, populations_by(self.model))
        return transmutation.evaluate_transmutation(real, {GENERATED: cells}, to, seed=seed)

    @computing
    def interpret(self, *, n_genes: int = InterpretationSettings.n_genes, seed: int = 0) -> AnnData:
        """Find the marker genes of each branch, and compare them with those in real cells.

        Parameters
        ----------
        n_genes
            Top genes of each branch that are compared.

        Returns
        -------
        AnnData of branches x genes, as :func:`bdm.interpretation.tables.branches_adata` makes it, for scanpy to plot.

        Raises
        ------
        InputError
            If the model was loaded without its cells, or is not fitted.
        """
        from bdm.interpretation.inputs import inputs_of
        from bdm.interpretation.interpret import interpret
        from bdm.interpretation.tables import branches_adata

        prepared = self._cells()
        generated = self.generate(numbers_like(prepared.obs, self.model), seed=seed)
        inputs = inputs_of(self.model, prepared, generated, seed=seed)
        self.interpretation = interpret(inputs, InterpretationSettings(n_genes=n_genes), seed=seed)
        return branches_adata(self.interpretation)
