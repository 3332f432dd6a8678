import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.data.prepare import prepare
from bdm.data.read import read_cells
from bdm.errors import InputError
from bdm.extension.extend import ExtendSettings, extend_all
from bdm.extension.new_cells import join_known_cells, new_cells
from bdm.files import atomic_write
from bdm.generation.generate import generate_cells
from bdm.generation.request import numbers_like, request_cells
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import Hierarchy, match_leaves
from bdm.latent.cells import encode
from bdm.model.fit import Checkpoints, fit
from bdm.model.fitted_cells import fitted_cells, real_cells_for
from bdm.model.match import encodable, keys_found_in, known_cells
from bdm.model.model import BranchedModel, load_model, save_model
from bdm.provenance import provenance, storable
from bdm.schema import reject_unknown
from bdm.settings import (
    EvaluationSettings,
    GenerationSettings,
    InputKeys,
    InterpretationSettings,
    PrepareSettings,
    SamplerSettings,
    Settings,
)
from bdm.text import listed
from bdm.threads import using_threads
from bdm.training import fabric
from bdm.transmutation.request import Goal, Pair, sources_of
from bdm.transmutation.transmute import transmute_cells

if TYPE_CHECKING:
    from bdm.evaluation.evaluate import Evaluation
    from bdm.extension.extend import FittedExtension
    from bdm.interpretation.results import Interpretation
    from bdm.transmutation.evaluate import TransmutationEvaluation


Method = TypeVar("Method", bound=Callable)


def computing(method: Method) -> Method:
    """Let a method compute with the model's number of threads, and reject arguments that it does not have."""
    known = [name for name in inspect.signature(method).parameters if name != "self"]

    @functools.wraps(method)
    def run(self: "BranchedDiffusion", *arguments: object, **options: object) -> object:
        reject_unknown(options, known)
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
        Cells with raw counts in ``layers['counts']``, ``raw`` or ``X``, or a file of such cells; they are not changed.
    label_key, batch_key
        Columns of ``obs`` with the cell type and, if any, the batch; ``settings.prepare`` has the defaults.
    tree
        Hierarchy of cell types to use in place of the one that is found: nested lists such as
        ``[["B", "NK"], "Monocyte"]``, a file (Newick, or nested lists in ``.json``), or what :func:`bdm.read_tree`
        returns.
    seed
        Seed of every random draw; ``settings.prepare.seed`` if not given.
    n_threads
        Threads to compute with; all that the process may use, if not given. Results do not depend on their number.

    Raises
    ------
    InputError
        If the model cannot be fitted to the data, ``tree`` has other cell types, or an argument contradicts
        ``settings``.

    Attributes
    ----------
    interpretation
        What :meth:`interpret` found, for :mod:`bdm.pl` to draw.
    learnt
        What the last :meth:`extend` learned, type by type, for :mod:`bdm.pl` to draw.
    history
        Losses of the last :meth:`fit` by step, as tables of the ``autoencoder`` and the ``denoiser``.
    """

    settings: Settings | None = None
    prepared: AnnData | None = None
    fitted: BranchedModel | None = None
    interpretation: "Interpretation | None" = None
    learnt: "tuple[FittedExtension, ...]" = ()
    history: Mapping[str, pd.DataFrame] = MappingProxyType({})
    n_threads: int | None = None

    def __init__(
        self,
        adata: AnnData | Path | str,
        *,
        label_key: str | None = None,
        batch_key: str | None = None,
        tree: Tree | None = None,
        settings: Settings = Settings(),
        seed: int | None = None,
        device: str = "auto",
        n_threads: int | None = None,
    ):
        if not isinstance(settings, Settings):
            raise InputError(f"`settings=` takes a bdm.Settings, not {type(settings).__name__}; put yours into one.")
        preparing = settings_with(settings.prepare, label_key=label_key, batch_key=batch_key, seed=seed)
        with using_threads(n_threads):
            self.prepared = prepare(cells_in(adata), preparing)
        self.tree = None
        if tree is not None:
            self.tree = match_leaves(as_clade(tree), tuple(self.prepared.obs["cell_type"].cat.categories))
        self.settings = replace(settings, prepare=preparing)
        self.seed = preparing.seed if seed is None else seed
        self.device = device
        self.n_threads = n_threads

    def __repr__(self) -> str:
        rows = {"cell types": listed(self.cell_types)}
        if self.fitted is None:
            title = "not fitted"
        else:
            title = f"fitted on {int(self.model.composition.to_numpy().sum()):,} cells"
            keys = {name: self.model.preparation[name] for name in ("label_key", "batch_key", "counts")}
            rows |= {
                "genes": f"{len(self.model.autoencoder.genes):,}",
                "batches": listed(self.model.autoencoder.batches),
                "tree": f"{sum(map(bool, self.hierarchy.children.values()))} branch points",
                "extended by": listed([extension.cell_type for extension in self.model.extensions]),
                "columns": ", ".join(f"{name}={key!r}" for name, key in keys.items() if key),
            }
        if self.prepared is not None:
            splits = self.prepared.obs["split"].value_counts(sort=False)
            rows["cells in memory"] = ", ".join(f"{number:,} {split}" for split, number in splits.items())
        lines = [f"    {name}: {text}" for name, text in rows.items() if text]
        return "\n".join([f"BranchedDiffusion, {title}", *lines])

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the cell types, in the order of the tree's leaves once there is one."""
        if self.fitted is not None:
            return self.hierarchy.cell_types
        return tuple(self.prepared.obs["cell_type"].cat.categories)

    @computing
    def fit(self, *, checkpoints: Checkpoints | None = None) -> "BranchedDiffusion":
        """Train the autoencoder, find the hierarchy, and train the denoiser; returns the model itself.

        Shows how far it is on a terminal and in a notebook; ``logging.getLogger("bdm").setLevel("WARNING")`` keeps it
        quiet.

        Parameters
        ----------
        checkpoints
            Where each training goes on from, if it was interrupted.
        """
        if self.settings is None or self.prepared is None:
            raise InputError("A loaded model cannot be fitted again; make a new one from an AnnData.")
        how = {"tree": self.tree, "seed": self.seed, "device": self.device, "checkpoints": checkpoints or Checkpoints()}
        found = fit(self.prepared, self.settings, **how)
        self.fitted, self.history = found.model, found.history
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
        cells: int | Mapping[str, int] | pd.DataFrame,
        *,
        shared_ancestors: bool = GenerationSettings.shared_ancestors,
        stochastic: bool = SamplerSettings.stochastic,
        n_levels: int = SamplerSettings.n_levels,
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
        settings = GenerationSettings(n_levels=n_levels, stochastic=stochastic, shared_ancestors=shared_ancestors)
        request = request_cells(self.model, cells)
        adata = generate_cells(self.model, request, settings, seed=seed, shared_ancestors=shared_ancestors)
        record = provenance(seed=seed, request=request.table.to_dict("list"), settings=asdict(settings))
        adata.uns["bdm"] = storable(record)
        return adata

    @computing
    def transmute(
        self,
        adata: AnnData,
        to: str,
        *,
        from_: str | Sequence[str] = (),
        like: Mapping[str, str] | None = None,
        label_key: str | None = None,
        batch_key: str | None = None,
        counts: str | None = None,
        stochastic: bool = SamplerSettings.stochastic,
        n_levels: int = SamplerSettings.n_levels,
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
            Cell type or types to transmute; all but ``to`` if none are named.
        like
            Types that made such a move, old to new. The model need then not know ``to``: cells go as these types went,
            and most as those nearest to their own.
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as in the model's data,
            if not given.
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
        goal = Goal(str(to), tuple(Pair(str(old), str(new)) for old, new in (like or {}).items()))
        keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
        cell_types = type_names(from_)
        sources = sources_of(adata, self.model, goal, keys, cell_types=cell_types)
        moved = transmute_cells(self.model, sources, goal, settings, seed=seed)
        asked = {"to": goal.to, "from": list(cell_types), "like": dict(goal.like)}
        moved.uns["bdm"] = storable(provenance(seed=seed, settings={**asdict(settings), **asked}))
        return moved

    @computing
    def extend(
        self,
        adata: AnnData,
        *,
        cell_types: str | Sequence[str] = (),
        update: str | Sequence[str] = (),
        label_key: str | None = None,
        batch_key: str | None = None,
        counts: str | None = None,
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
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as in the model's data,
            if not given.
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
            cell_types=type_names(cell_types),
            update=type_names(update),
            keys=InputKeys(label_key=label_key, batch_key=batch_key, counts=counts),
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        record = provenance(seed=seed, settings=asdict(settings))
        prepared = None if self.prepared is None else join_known_cells(new, self.model, self.prepared)
        learned = tuple(extend_all(self.model, new, settings, seed=seed, provenance=record))
        self.fitted, self.learnt, self.prepared, self.interpretation = learned[-1].model, learned, prepared, None
        return self

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
        """Judge generated cells by held-out real cells, with real training cells beside them as the floor.

        Parameters
        ----------
        adata_test
            Cells that the model was not fitted on, with raw counts; the test cells that ``settings.prepare.test`` kept,
            if not given.
        adata_new
            Cells to judge, named ``branched``; new ones, as many of each type as there are test cells, if not given.
        compare
            Other cells to judge in the same way, by name.
        label_key, counts
            Column of ``obs`` with the cell type, and where the raw counts are; as in the model's data, if not given.
        n_repeats
            Draws of cells over which scores are averaged.

        Returns
        -------
        Scores as tables: ``overall`` (scores x sets, the floor first) and ``by_type``; for :func:`bdm.pl.scores` to
        draw.

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
        from bdm.evaluation.cells import RESERVED_SET_NAMES
        from bdm.evaluation.evaluate import evaluate
        from bdm.evaluation.inputs import check_number

        if taken := set(RESERVED_SET_NAMES) & set(compare or {}):
            raise InputError(f"The name {taken.pop()} is taken; choose another for the cells to judge.")
        keys = InputKeys(label_key=label_key, counts=counts)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        if adata_new is None:
            adata_new = self.generate(real.test.n_by_type.to_dict(), seed=seed)
        sets = {"branched": adata_new, **(compare or {})}
        cells = {name: known_cells(adata, self.model, keys_found_in(adata, keys)) for name, adata in sets.items()}
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
        counts: str | None = None,
        seed: int = 0,
    ) -> "TransmutationEvaluation":
        """Judge transmuted cells by held-out real cells of their new type, and by what each was before.

        Parameters
        ----------
        adata_moved
            Cells that :meth:`transmute` moved.
        adata
            The cells that it moved.
        adata_test
            As in :meth:`evaluate`.
        label_key, counts
            As in :meth:`evaluate`, of ``adata`` and ``adata_test``.

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
        from bdm.transmutation.evaluate import TransmutedCells, evaluate_transmutation, rows_before, transmuted_to

        keys = InputKeys(label_key=label_key, counts=counts)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        places = rows_before(adata_moved, adata.obs_names, names=("adata_moved", "adata"))
        before = known_cells(adata[places], self.model, keys)
        moved = TransmutedCells(Cells.of(adata_moved[:, real.genes]), before)
        return evaluate_transmutation(real, {"branched": moved}, transmuted_to(adata_moved, "adata_moved"), seed=seed)

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
    def interpret(self, *, n_genes: int = InterpretationSettings.n_genes, seed: int = 0) -> AnnData:
        """Find the genes that part the children of each node, and compare them with real cells.

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

    def save(self, path: Path | str) -> None:
        """Write the model as a folder of safetensors and JSON."""
        with atomic_write(Path(path), folder_of="model.json") as folder:
            save_model(folder, self.model)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        adata: AnnData | Path | str | None = None,
        label_key: str | None = None,
        batch_key: str | None = None,
        counts: str | None = None,
        device: str = "auto",
        n_threads: int | None = None,
    ) -> "BranchedDiffusion":
        """Read a model that :meth:`save`, ``bdm train`` or ``bdm fit`` wrote.

        Parameters
        ----------
        adata
            The cells that the model was fitted on, raw or made by ``bdm prepare``, or a file of these cells. Without
            them, the model generates, transmutes and extends; with them, it also evaluates and interprets. They are
            prepared as they were for the fit, with the same split.
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as when the model was
            fitted, if not given.
        n_threads
            Threads to compute with; all that the process may use, if not given.

        Raises
        ------
        InputError
            If the folder holds no model, or is damaged; or ``adata`` lacks the model's genes or cell types.
        """
        model = cls.__new__(cls)
        model.device = device
        model.n_threads = n_threads
        model.fitted = load_model(Path(path), device=fabric(device).device)
        if adata is not None:
            keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
            model.prepared = fitted_cells(cells_in(adata, on_disk=False), model.fitted, keys)
        return model


def cells_in(adata: AnnData | Path | str, *, on_disk: bool = True) -> AnnData:
    """Take cells as they are given, or read them from their file.

    Raises
    ------
    InputError
        If they are neither.
    """
    if isinstance(adata, str | Path):
        return read_cells(Path(adata), on_disk=on_disk)
    if not isinstance(adata, AnnData):
        raise InputError(f"Cells are given as an AnnData or a file of one, not as {type(adata).__name__}.")
    return adata


def settings_with(settings: PrepareSettings, **given: Any) -> PrepareSettings:
    """Complete settings by arguments; None leaves a setting as it is.

    Raises
    ------
    InputError
        If an argument contradicts a setting that is not the default.
    """
    default, given = PrepareSettings(), {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if (found := getattr(settings, name)) not in (getattr(default, name), value):
            raise InputError(f"{name} is {value!r}, and {found!r} in settings.prepare; give it in one place.")
    return replace(settings, **given)


def type_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Bring one name of a cell type or several, which may be numbers in the data, to text."""
    return (str(names),) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(map(str, names))
