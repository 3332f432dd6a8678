"""The class BranchedDiffusion: fit, apply, extend, save and load a model in Python."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, counted, listed
from bdm._core.files import atomic_write, reject_existing
from bdm._core.parallel import using_threads
from bdm._core.schema import ARGUMENTS, checked, checking, document, helps_of, reject_unknown
from bdm.applications.design.design import keys_in_words, read_design
from bdm.applications.extension.extend import extend
from bdm.applications.extension.new_cells import join_known_cells, select_new_cells
from bdm.applications.transmutation.transmute import select_sources, transmuted_cells
from bdm.autoencoder.latent import encode
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import as_names
from bdm.data.modalities import FORM, features_in_words, require_package_of, to_form
from bdm.data.prepare import prepare
from bdm.data.read import cells_in
from bdm.generation.covariate_values import NO_COVARIATES, CovariateValues
from bdm.generation.generate import generate_cells
from bdm.generation.modality import find_modality, match_request, predict_modality
from bdm.generation.request import (
    numbers_of,
    request_cells,
    with_known_batches,
)
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import Hierarchy, match_leaves
from bdm.model.fit_model import fit
from bdm.model.match import (
    cells_for,
    encoder_input,
    fitted_cells,
    known_cells,
    population_assigner,
    real_cells_for,
    sets_for,
)
from bdm.model.model import BranchedModel, load_model, warn_of_rare_types
from bdm.report.card import model_card, save_with_card
from bdm.report.hub import local_folder, push
from bdm.settings import (
    AuditSettings,
    EvaluationSettings,
    FitSettings,
    GenerationSettings,
    InputKeys,
    InterpretationSettings,
    PrepareSettings,
    Settings,
)

if TYPE_CHECKING:
    from bdm.applications.audit.audit import Audit
    from bdm.applications.design.design import Design
    from bdm.applications.extension.extend import FittedExtension
    from bdm.applications.power.analysis import PowerAnalysis
    from bdm.applications.relations.responses import Responses
    from bdm.applications.transmutation.evaluate_transmuted import TransmutationEvaluation
    from bdm.effects.donors import DonorModel
    from bdm.evaluation.evaluate import Evaluation
    from bdm.interpretation.interpretation import Interpretation


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
DESCRIPTIONS = helps_of(Settings, EvaluationSettings, GenerationSettings, InterpretationSettings) | ARGUMENTS


def computing(
    method: Callable[Concatenate["BranchedDiffusion", Arguments], Result],
) -> Callable[Concatenate["BranchedDiffusion", Arguments], Result]:
    """Decorate a method: document and check its arguments, and use the model's number of threads."""
    document(method, DESCRIPTIONS)
    parameters = signature(method).parameters
    is_seed_optional = "seed" in parameters and parameters["seed"].default is None

    @wraps(method)
    def run(self: "BranchedDiffusion", /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        reject_unknown(options, [name for name in parameters if name != "self"])
        if "seed" in options and not (options["seed"] is None and is_seed_optional):
            seed: Any = options["seed"]
            PrepareSettings(seed=seed)
        with (
            using_threads(self.n_threads),
            checking(method, (self, *arguments), options, model=BranchedDiffusion.__init__),
        ):
            return method(self, *arguments, **options)

    return run


class BranchedDiffusion:
    """Hierarchically branched diffusion model of labelled single-cell counts.

    ::

        model = bdm.BranchedDiffusion(adata, label_key="cell_type")
        model.fit()
        adata_new = model.generate(1000)
        model.save("model")

    Invalid input raises a :class:`bdm.InputError` with the cause and a remedy.

    Parameters
    ----------
    adata
        AnnData, MuData or path of a file, with raw counts in ``layers["counts"]``, ``raw`` or ``X``. It is not changed.
    label_key
        Column of ``obs`` with the cell type. None for cells without labels: all get the type ``cell``. By default
        ``settings.prepare.label_key``, which is ``cell_type``.
    covariate_key
        Columns of ``obs`` with numbers that cells depend on, such as time, dose, age or pseudotime: one name, or
        several.
    tree
        Your own tree of the cell types: nested lists such as ``[["B", "NK"], "Monocyte"]``, a file (Newick, or nested
        lists in ``.json``), or the result of :func:`bdm.read_tree`. By default the types are clustered.
    settings
        Settings of all stages, by default of :class:`bdm.Settings`. Give each here, or as the argument of its name.
    seed
        Seed of all random numbers of the fit; ``settings.prepare.seed`` if None.

    Attributes
    ----------
    prepared
        Cells that the model is fitted on, as returned by :func:`bdm.data.prepare.prepare`. None if the model was loaded
        without cells.
    fitted
        Fitted model; None before :meth:`fit`.
    interpretation
        Result of the last :meth:`interpret`, for :mod:`bdm.pl`.
    last_extension
        Result of the last :meth:`extend` for each added type, for :mod:`bdm.pl`.
    history
        Losses of the last :meth:`fit` by training step: the table ``autoencoder``; with the prior ``diffusion``, also
        ``training``, and ``decision``, which compares the network with the closed form on held-out cells.
    """

    prepared: AnnData | None = None
    fitted: BranchedModel | None = None
    settings: Settings | None = None
    interpretation: "Interpretation | None" = None
    last_extension: "tuple[FittedExtension, ...]" = ()
    history: Mapping[str, pd.DataFrame] = MappingProxyType({})

    @checked
    def __init__(
        self,
        adata: AnnData | Path | str,
        label_key: str | EllipsisType | None = ...,
        *,
        batch_key: str | None = None,
        donor_key: str | None = None,
        covariate_key: str | Sequence[str] | None = None,
        spatial_key: str | None = None,
        section_key: str | None = None,
        tree: Tree | None = None,
        prior: str | None = None,
        likelihood: str | None = None,
        settings: Settings | None = None,
        device: str = "auto",
        seed: int | None = None,
        n_threads: int | None = None,
    ):
        settings = Settings() if settings is None else settings
        if prior is not None:
            settings = replace(settings, train=replace(settings.train, prior=prior))
        if likelihood is not None:
            settings = replace(settings, autoencoder=replace(settings.autoencoder, likelihood=likelihood))
        covariates = None if covariate_key is None else as_names(covariate_key)
        arguments = {
            "batch_key": batch_key,
            "donor_key": donor_key,
            "covariate_key": covariates,
            "spatial_key": spatial_key,
            "section_key": section_key,
            "seed": seed,
        }
        arguments = {name: value for name, value in arguments.items() if value is not None}
        if label_key is not ...:
            arguments["label_key"] = label_key
        preparation = merged_settings(settings.prepare, **arguments)
        with using_threads(n_threads):
            self.prepared = prepare(cells_in(adata, **preparation.reading), preparation)
        if isinstance(adata, str | Path):
            require_package_of(self.prepared.uns["bdm"].get(FORM))
        types = tuple(self.prepared.obs["cell_type"].cat.categories)
        self.tree = None if tree is None else match_leaves(as_clade(tree), types)
        self.settings = replace(settings, prepare=preparation)
        self.seed = preparation.seed
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
                "genes": features_in_words(self.model.autoencoder.genes).removesuffix(" genes"),
                "batches": listed(self.model.autoencoder.batches),
                **{f"effects of {name}": text for name, text in self.model.learned.items()},
                "tree": counted(sum(map(bool, self.hierarchy.children.values())), "node"),
                "extended by": listed([extension.cell_type for extension in self.model.extensions]),
                "columns": ", ".join(f"{name}={key!r}" for name, key in keys.items() if key),
            }
        if self.prepared is not None:
            splits = self.prepared.obs["split"].value_counts(sort=False)
            rows["cells in memory"] = ", ".join(f"{number:,} {split}" for split, number in splits.items())
        lines = [f"    {name}: {text}" for name, text in rows.items() if text]
        return "\n".join([f"BranchedDiffusion, {title}", *lines])

    @computing
    def fit(self) -> "BranchedDiffusion":
        """Train the autoencoder, derive the hierarchy, and fit the prior.

        Progress is shown on a terminal or in a notebook; ``logging.getLogger("bdm").setLevel("WARNING")`` hides it.

        Returns
        -------
        The model itself.
        """
        if self.settings is None or self.prepared is None:
            raise InputError("A loaded model cannot be fitted again; make a new one from an AnnData.")
        self.fitted, self.history = fit(
            self.prepared, self.settings, tree=self.tree, seed=self.seed, device=self.device
        )
        warn_of_rare_types(self.fitted, self.fitted.cell_types)
        self.interpretation, self.last_extension = None, ()
        return self

    @property
    def model(self) -> BranchedModel:
        """Fitted model; an InputError before :meth:`fit`."""
        if self.fitted is None:
            raise InputError("The model is not fitted yet; call fit() first.")
        return self.fitted

    @property
    def hierarchy(self) -> Hierarchy:
        """Hierarchy of cell types, with the noise level of each branch."""
        return self.model.hierarchy

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of cell types; after the fit, ordered as the tree's leaves."""
        if self.fitted is not None:
            return self.hierarchy.cell_types
        return tuple(self._cells().obs["cell_type"].cat.categories)

    @property
    def donors(self) -> "DonorModel | None":
        """Distribution of donors; None if the model was fitted without donors."""
        return self.model.donors

    def _cells(self) -> AnnData:
        """Return the prepared cells; reject a model that was loaded without cells."""
        if self.prepared is None:
            raise InputError(
                "A loaded model holds no cells; give the cells that it was fitted on, as in "
                "BranchedDiffusion.load(path, adata=adata)."
            )
        return self.prepared

    @computing
    def get_latent_representation(self, adata: AnnData | None = None, *, keys: InputKeys = DEFAULT_KEYS) -> np.ndarray:
        """Return the posterior means of cells in the autoencoder's latent space.

        Parameters
        ----------
        adata
            Cells of the model's cell types, with raw counts of its genes. By default the cells in memory.

        Returns
        -------
        Array, cells x latent dimensions, in the order of ``adata``.
        """
        cells = self._cells() if adata is None else encoder_input(cells_for(adata, self.model, keys), self.model, keys)
        return np.asarray(encode(cells, self.model.autoencoder).X)[:, self.model.layout.latent]

    @computing
    def generate(
        self,
        cells: int | Mapping[str, int] | pd.Series | pd.DataFrame | AnnData | None = None,
        *,
        new_locations: int | None = None,
        at: CovariateValues = NO_COVARIATES,
        extrapolate: bool = False,
        shared_ancestors: bool = GenerationSettings.shared_ancestors,
        seed: int = 0,
    ) -> AnnData:
        """Generate new cells with raw counts.

        Parameters
        ----------
        cells
            Number of cells of each type; numbers by type; a table with a row for each cell, or group of cells, as
            described in :func:`bdm.generation.request.request_cells`; or an AnnData with cells to repeat, of their
            types and at their batches, covariates and positions. Types may be sub-populations. Cells of a cell type are
            divided between its sub-populations in the proportions of the training cells.
        new_locations
            In place of ``cells``: number of cells at new positions, with types from the model's map.
        at
            Values of covariates by name: a number, or a range such as ``{"time": (300, 500)}`` that the cells cover
            evenly. Other covariates are drawn from the training cells.
        extrapolate
            Allow values of covariates outside the range of the training cells, and positions outside their tissue.

        Returns
        -------
        AnnData with raw counts, as described in :func:`bdm.generation.generate.generate_cells`. With several
        modalities, the class of the model's data, such as MuData. Where rows of a table are cells, cells have their
        order and names; else they are ordered by cell type and sub-population; to subset them, sample at random, for
        example by ``sc.pp.sample``.
        """
        require_package_of(self.model.form)
        settings = GenerationSettings(shared_ancestors=shared_ancestors)
        request = request_cells(
            self.model, cells, new_locations=new_locations, at=at, extrapolate=extrapolate, seed=seed
        )
        warn_of_rare_types(self.model, request.n_by_type)
        return to_form(generate_cells(self.model, request, settings, seed=seed), self.model.form)

    @computing
    def predict_modality(
        self,
        adata: AnnData,
        modality: str = "prot",
        *,
        n_samples: int = 200,
        keys: InputKeys = DEFAULT_KEYS,
        seed: int = 0,
    ) -> AnnData:
        """Predict distributions of proteins or peaks from the RNA of cells.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, and the model's covariates in ``obs``. Cell types are used if
            ``obs`` has their column; otherwise, a cell may be of any type.
        modality
            Modality of the model to predict.
        n_samples
            Number of posterior samples per cell, for means and intervals.

        Returns
        -------
        AnnData with expected counts and 90% intervals, as described in
        :func:`bdm.generation.modality.predict_modality`.
        """
        target = find_modality(self.model, modality)
        request = match_request(cells_for(adata, self.model, keys), self.model, keys)
        return predict_modality(self.model, request, target, n_samples=n_samples, seed=seed)

    @computing
    def transmute(
        self,
        adata: AnnData,
        to: str,
        from_: str | Sequence[str] = (),
        *,
        at: CovariateValues = NO_COVARIATES,
        extrapolate: bool = False,
        keys: InputKeys = DEFAULT_KEYS,
        seed: int = 0,
    ) -> AnnData:
        """Transmute cells to another cell type or sub-population.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, and cell types in ``obs``.
        to
            Target cell type or sub-population.
        from_
            Cell type or types to transmute; all except ``to`` by default.
        at
            New values of covariates by name, as in :meth:`generate`; cells keep their values of other covariates.
        extrapolate
            Allow values of covariates outside the range of the training cells.

        Returns
        -------
        AnnData with raw counts, see :func:`bdm.applications.transmutation.transmute.transmuted_cells`. With several
        modalities, the class of the model's data.
        """
        require_package_of(self.model.form)
        cells, cell_types = cells_for(adata, self.model, keys), as_names(from_)
        sources = select_sources(
            cells, self.model, str(to), keys, cell_types=cell_types, at=at, extrapolate=extrapolate
        )
        return to_form(transmuted_cells(self.model, sources, seed=seed).in_memory(), self.model.form)

    @computing
    def evaluate(
        self,
        adata_new: AnnData | None = None,
        *,
        compare: Mapping[str, AnnData] | None = None,
        adata_test: AnnData | None = None,
        keys: InputKeys = DEFAULT_KEYS,
        n_repeats: int = EvaluationSettings.n_repeats,
        seed: int = 0,
    ) -> "Evaluation":
        """Score generated cells against held-out real cells.

        Training cells, scored the same way, are the floor.

        Parameters
        ----------
        adata_new
            Cells to evaluate as the set ``generated``. By default the model generates as many of each type as there
            are test cells, at their positions if it has learned positions.
        compare
            Further sets of cells to evaluate, by name.

        Returns
        -------
        Evaluation with the table ``scores``; its parts ``overall`` (scores x sets, the floor first) and ``by_type``;
        ``verdict`` summarises it, :func:`bdm.pl.scores` plots it, ``save`` writes it.

        Examples
        --------
        ::

            evaluation = model.evaluate(adata_test=adata_test)
            evaluation.overall.loc[["energy", "forest_auc", "f1"]]
            bdm.pl.scores(evaluation)
        """
        from bdm.data.cells import GENERATED, RESERVED_SET_NAMES
        from bdm.evaluation.evaluate import evaluate

        if reserved := set(RESERVED_SET_NAMES) & set(compare or {}):
            raise InputError(f"The name {reserved.pop()} is taken; choose another for the cells to evaluate.")
        settings = EvaluationSettings(n_repeats=n_repeats)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        if adata_new is None:
            test = real.test
            columns = {"cell_type": test.cell_type} | ({} if test.batch is None else {"batch": test.batch})
            cells = with_known_batches(self.model, pd.concat([pd.DataFrame(columns), test.covariates], axis=1))
            if self.model.space is None or test.positions is None:
                cells = numbers_of(self.model, cells)
            else:
                cells = cells.join(test.positions)
            request = request_cells(self.model, cells, extrapolate=True, seed=seed)
            adata_new = generate_cells(self.model, request, GenerationSettings(), seed=seed)
        sets = sets_for(self.model, {GENERATED: adata_new, **(compare or {})}, real, keys)
        return evaluate(real, sets, settings, populations=population_assigner(self.model), seed=seed)

    @computing
    def evaluate_transmuted(
        self,
        adata: AnnData,
        adata_transmuted: AnnData,
        *,
        adata_test: AnnData | None = None,
        keys: InputKeys = DEFAULT_KEYS,
        seed: int = 0,
    ) -> "TransmutationEvaluation":
        """Score transmuted cells against held-out real cells of their new type.

        The same cells before transmutation, and training cells of the new type, are scored for comparison.

        Parameters
        ----------
        adata
            Cells before transmutation.
        adata_transmuted
            The same cells, as returned by :meth:`transmute`.

        Returns
        -------
        Evaluation with scores in ``table``; :func:`bdm.pl.transmutation` plots it, ``save`` writes it.

        Examples
        --------
        ::

            adata_transmuted = model.transmute(adata, to="NK")
            evaluation = model.evaluate_transmuted(adata, adata_transmuted, adata_test=adata_test)
            bdm.pl.transmutation(evaluation)
        """
        from bdm.applications.transmutation import evaluate_transmuted as transmutation
        from bdm.data.cells import TRANSMUTED

        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        adata_transmuted, adata = cells_in(adata_transmuted), cells_for(adata, self.model, keys)
        names = ("adata_transmuted", "adata")
        after, rows = transmutation.check_transmuted(adata_transmuted, adata.obs_names, real, names=names)
        cells = transmutation.TransmutedCells(after, known_cells(adata[rows], self.model, keys))
        target = transmutation.read_target(adata_transmuted, "adata_transmuted")
        real, to = transmutation.relabel(real, *target, population_assigner(self.model))
        return transmutation.evaluate_transmutation(real, {TRANSMUTED: cells}, to, seed=seed)

    @computing
    def interpret(self, *, n_genes: int = InterpretationSettings.n_genes, seed: int = 0) -> AnnData:
        """Find the marker genes of each branch, and compare with real cells.

        Returns
        -------
        AnnData, branches x genes, in scanpy's format, as described in
        :func:`bdm.interpretation.interpretation.branches_adata`.
        """
        from bdm.interpretation.interpret import interpret, prepare_inputs
        from bdm.interpretation.interpretation import branches_adata

        prepared = self._cells()
        request = request_cells(self.model, numbers_of(self.model, prepared.obs))
        generated = generate_cells(self.model, request, GenerationSettings(), seed=seed)
        inputs = prepare_inputs(self.model, prepared, generated, seed=seed)
        self.interpretation = interpret(inputs, InterpretationSettings(n_genes=n_genes), seed=seed)
        return branches_adata(self.interpretation)

    @computing
    def audit(self, settings: AuditSettings = AuditSettings(), *, models: Path | str | None = None) -> "Audit":
        """Audit privacy by membership inference attacks.

        For each fold, a model with the same settings is fitted to part of the cells, and attacked together with its
        generated cells. Attacks on copies of its training cells are the reference. This model need not be fitted.

        Parameters
        ----------
        settings
            Settings of the audit. Set ``cells_per_training_cell`` to generate as many cells as you will share.
        models
            Folder of the models of the folds. Existing models are read; missing ones are fitted and saved. If None, no
            models are saved.

        Returns
        -------
        Audit with the scores of all attacks and a verdict; :func:`bdm.pl.audit` plots it, ``save`` writes it.
        """
        from bdm.applications.audit.folds import divide
        from bdm.applications.audit.run import AuditedModels, audit_models

        if self.settings is None:
            raise InputError("A loaded model cannot be audited, as it holds no cells; make a new one from an AnnData.")
        fit = FitSettings(**{stage.name: getattr(self.settings, stage.name) for stage in fields(FitSettings)})
        folder = None if models is None else Path(models)
        audited = AuditedModels(fit=fit, tree=self.tree, folder=folder, device=self.device, seed=self.seed)
        return audit_models(divide(self._cells(), settings, seed=self.seed), settings, audited)

    @computing
    def simulate(self, design: "Design | dict[str, Any] | Path | str", *, seed: int | None = None) -> AnnData:
        """Simulate an experiment with chosen samples, donors, conditions, changes and artefacts.

        Parameters
        ----------
        design
            Design as a YAML file, or a dictionary with the same keys, which are below.
        seed
            Seed of all random numbers; by default the seed of the design.

        Returns
        -------
        AnnData with raw counts, and the true effects in ``uns["truth"]``, as described in
        :func:`bdm.applications.design.simulate.simulate_cells`. With several modalities, the class of the model's data.

        Examples
        --------
        ::

            design = {
                "samples": {"donors": 3, "conditions": ["control", "stimulated"]},
                "changes": [{"name": "up", "condition": "stimulated", "genes": ["ISG15"], "log2_fold_change": 1}],
            }
            adata = model.simulate(design)
            adata.uns["truth"]["genes"]

        Notes
        -----
        The keys of a design, with their defaults::

            KEYS
        """
        from bdm.applications.design.simulate import simulate_cells

        require_package_of(self.model.form)
        return to_form(simulate_cells(self.model, read_design(design, seed=seed)), self.model.form)

    simulate.__doc__ = str(simulate.__doc__).replace("KEYS", indent(keys_in_words(), 4 * " ").strip())

    @computing
    def power(self, design: "Design | dict[str, Any] | Path | str") -> "PowerAnalysis":
        """Estimate the power of experiments by numbers of donors and cells.

        Each experiment of a grid is simulated and tested repeatedly.

        Parameters
        ----------
        design
            Design as in :meth:`simulate`, with the grid in its section ``power``; see the page on power.

        Returns
        -------
        Analysis with tables of power and false discovery rates; :func:`bdm.pl.power` plots it, ``save`` writes it.
        """
        from bdm.applications.power.analysis import power_analysis

        return power_analysis(self.model, design)

    @computing
    def extend(
        self,
        adata: AnnData,
        *,
        cell_types: str | Sequence[str] = (),
        keys: InputKeys = DEFAULT_KEYS,
        missing_as_zero: bool = False,
        seed: int = 0,
    ) -> "BranchedDiffusion":
        """Add cell types to the model, and leave the others unchanged.

        Parameters
        ----------
        adata
            Cells of the new types, with raw counts of the model's genes and cell types in ``obs``. Genes are matched by
            name or identifier.
        cell_types
            Types to add, in this order; by default all new types, largest first.
        missing_as_zero
            Treat missing genes as not expressed.

        Returns
        -------
        The model itself.
        """
        new = select_new_cells(
            cells_for(adata, self.model, keys),
            self.model,
            cell_types=as_names(cell_types),
            keys=keys,
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        prepared = None if self.prepared is None else join_known_cells(new, self.model, self.prepared)
        steps = extend(self.model, new, seed=seed)
        self.fitted, self.last_extension, self.prepared, self.interpretation = steps[-1].model, steps, prepared, None
        return self

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Save the model as a folder of safetensors and JSON.

        The model card is in ``README.md``.

        Parameters
        ----------
        path
            Folder to write.
        overwrite
            Replace the folder if it holds a model.
        """
        if not overwrite:
            reject_existing(Path(path))
        with atomic_write(Path(path), folder_of="model.json") as folder:
            save_with_card(folder, self.model)

    def card(
        self,
        evaluation: "Evaluation | None" = None,
        *,
        audit: "Audit | None" = None,
        responses: "Responses | None" = None,
        license: str | None = None,
    ) -> str:
        """Return the model card as Markdown with Hugging Face metadata.

        Parameters
        ----------
        evaluation
            Evaluation of generated cells, for the section on scores.
        audit
            Audit of models with the same settings, for the section on privacy.
        responses
            Responses of the model's cell types to conditions, for the section on expected errors.
        license
            License of the data; by default ``settings.prepare.license``.

        Returns
        -------
        Text of the card.
        """
        return model_card(self.model, evaluation=evaluation, audit=audit, responses=responses, license=license)

    def push(self, address: str, *, card: str | None = None, public: bool = False, confirmed: bool = False) -> str:
        """Upload the model to Hugging Face Hub.

        A model discloses something about the donors of its cells. Nothing is sent without a license in the card.

        Parameters
        ----------
        address
            Repository, as ``hf://USER/NAME``; it is created if it does not exist.
        card
            Text of the card; by default :meth:`card` without scores.
        public
            Let everybody read the repository. By default, it is private.
        confirmed
            Confirm that the model may be sent to this repository.

        Returns
        -------
        Address with the revision of the upload, for :meth:`load`.
        """
        with TemporaryDirectory() as folder:
            save_with_card(Path(folder), self.model, card)
            return push(Path(folder), address, public=public, confirm=lambda text: confirmed)

    @classmethod
    @checked
    def load(
        cls,
        path: Path | str,
        *,
        adata: AnnData | Path | str | None = None,
        keys: InputKeys = DEFAULT_KEYS,
        device: str = "auto",
        n_threads: int | None = None,
    ) -> "BranchedDiffusion":
        """Load a model from a folder or from Hugging Face Hub.

        Parameters
        ----------
        path
            Folder that :meth:`save`, ``bdm train`` or ``bdm fit`` wrote; or ``hf://USER/NAME``, or
            ``hf://USER/NAME@REVISION``, which is downloaded into the cache of Hugging Face.
        adata
            Cells that the model was fitted on, raw or prepared by ``bdm prepare``, or their file. Only
            evaluation and interpretation need them. Raw cells are prepared and split as for the fit.

        Returns
        -------
        The model. It cannot be fitted again.
        """
        model = cls.__new__(cls)
        model.device = device
        model.n_threads = n_threads
        model.fitted = load_model(local_folder(path), device=device)
        if adata is not None:
            model.prepared = fitted_cells(cells_for(adata, model.fitted, keys, on_disk=False), model.fitted, keys)
        return model


document(BranchedDiffusion, DESCRIPTIONS)


def merged_settings(settings: PrepareSettings, **arguments: Any) -> PrepareSettings:
    """Override default settings by arguments; reject other settings that differ."""
    default = PrepareSettings()
    for name, value in arguments.items():
        if (setting := getattr(settings, name)) not in (getattr(default, name), value):
            raise InputError(f"{name} is {value!r}, and {setting!r} in settings.prepare; give it in one place.")
    return replace(settings, **arguments)
