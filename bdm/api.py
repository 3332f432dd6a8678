"""The Python API: a model that is made from raw counts, fitted, applied, extended, saved and loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import wraps
from inspect import signature
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, counted, listed
from bdm._core.files import atomic_write, provenance, reject_existing
from bdm._core.parallel import using_threads
from bdm._core.schema import checked, checking, reject_unknown
from bdm.data.columns import as_names
from bdm.data.modalities import FORM, features_in_words, require_package_of, to_form
from bdm.data.prepare import prepare
from bdm.data.read import cells_in
from bdm.extension.extend import ExtendSettings, extend_all
from bdm.extension.new_cells import join_known_cells, select_new_cells
from bdm.generation.at import NOWHERE, At
from bdm.generation.generate import generate_cells
from bdm.generation.modality import modality_named, predict_modality, question_of
from bdm.generation.request import numbers_like, request_cells
from bdm.hierarchy.build import user_tree
from bdm.hierarchy.files import Tree
from bdm.hierarchy.tree import Hierarchy, match_leaves
from bdm.latent.cells import encode
from bdm.model.card import model_card, save_with_card
from bdm.model.fit import fit
from bdm.model.match import (
    SAME,
    cells_for,
    encodable,
    fitted_cells,
    keys_found_in,
    known_cells,
    populations_by,
    real_cells_for,
)
from bdm.model.model import BranchedModel, load_model, warn_of_few_cells
from bdm.settings import (
    AuditSettings,
    EvaluationSettings,
    FitSettings,
    GenerationSettings,
    InputKeys,
    InterpretationSettings,
    PrepareSettings,
    SamplerSettings,
    Settings,
)
from bdm.transmutation.transmute import select_sources, transmuted_cells

if TYPE_CHECKING:
    from bdm.audit.results import Audit
    from bdm.design.settings import Design
    from bdm.donors.draw import DonorModel
    from bdm.evaluation.cells import TypedCells
    from bdm.evaluation.evaluate import Evaluation
    from bdm.extension.extend import FittedExtension
    from bdm.interpretation.results import Interpretation
    from bdm.power.analysis import PowerAnalysis
    from bdm.responses.results import Responses
    from bdm.transmutation.evaluate import TransmutationEvaluation


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def computing(
    method: Callable[Concatenate["BranchedDiffusion", Arguments], Result],
) -> Callable[Concatenate["BranchedDiffusion", Arguments], Result]:
    """Let a method compute with the model's number of threads, and reject unknown and invalid arguments."""
    parameters = signature(method).parameters
    may_be_none = "seed" in parameters and parameters["seed"].default is None

    @wraps(method)
    def run(self: "BranchedDiffusion", /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        reject_unknown(options, [name for name in parameters if name != "self"])
        if "seed" in options and not (options["seed"] is None and may_be_none):
            PrepareSettings.check(seed=options["seed"])
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

    Invalid input raises a :class:`bdm.InputError`, which says what is wrong, where, and what to do.

    Parameters
    ----------
    adata
        Cells with raw counts in ``layers['counts']``, ``raw`` or ``X``, or a file of such cells; they are not changed.
    label_key
        Column of ``obs`` with the cell type; None for cells without labels, which are all of one type, ``cell``. As in
        ``settings.prepare`` if not given, by default ``cell_type``.
    batch_key
        Column of ``obs`` with the batch, if any; as in ``settings.prepare`` if not given.
    donor_key
        Column of ``obs`` with the donor, if any; as in ``settings.prepare`` if not given. The model then learns how
        donors differ.
    covariate_key
        Column or columns of ``obs`` with a number that cells depend on, such as time, dose, age or pseudotime, if any;
        as in ``settings.prepare`` if not given.
    tree
        Your own hierarchy of cell types, in place of clustering: nested lists such as
        ``[["B", "NK"], "Monocyte"]``, a file (Newick, or nested lists in ``.json``), what :func:`bdm.read_tree`
        returns.
    prior
        Distribution of latents, by name: ``mixture``, ``diffusion``, ``flow`` or one of your own; as in
        ``settings.train``, if not given.
    likelihood
        Distribution of counts, by name: ``negative_binomial`` or one of your own; as in ``settings.autoencoder``, if
        not given.
    settings
        Settings of the stages; the defaults if not given.
    seed
        Seed of every random draw; ``settings.prepare.seed`` if not given.
    n_threads
        Threads to compute with; all that the process may use, if not given. Results do not depend on their number.

    Attributes
    ----------
    prepared
        Cells that the model is fitted on, made by :func:`bdm.data.prepare.prepare`; None if it was loaded without them.
    fitted
        None before the fit.
    interpretation
        The last result of :meth:`interpret`, for :mod:`bdm.pl` to plot.
    last_extension
        The types of the last :meth:`extend`, for :mod:`bdm.pl` to plot.
    history
        Losses of the last :meth:`fit` by step, as table of the ``autoencoder``; of a prior with a network, ``training``
        and, of the diffusion prior, ``branches``, on which the network is compared with the closed form.
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
        tree: Tree | None = None,
        prior: str | None = None,
        likelihood: str | None = None,
        settings: Settings | None = None,
        seed: int | None = None,
        device: str = "auto",
        n_threads: int | None = None,
    ):
        settings = Settings() if settings is None else settings
        if prior is not None:
            settings = replace(settings, train=replace(settings.train, prior=prior))
        if likelihood is not None:
            settings = replace(settings, autoencoder=replace(settings.autoencoder, likelihood=likelihood))
        covariates = None if covariate_key is None else as_names(covariate_key)
        given = {"batch_key": batch_key, "donor_key": donor_key, "covariate_key": covariates, "seed": seed}
        given = {name: value for name, value in given.items() if value is not None}
        if label_key is not ...:
            given["label_key"] = label_key
        preparing = settings_with(settings.prepare, **given)
        with using_threads(n_threads):
            cells = cells_in(adata, **preparing.reading)
            self.prepared = prepare(cells, preparing)
        if isinstance(adata, str | Path):
            require_package_of(self.prepared.uns["bdm"].get(FORM))
        self.tree = user_tree(tree, settings.hierarchy)
        if self.tree is not None:
            self.tree = match_leaves(self.tree, tuple(self.prepared.obs["cell_type"].cat.categories))
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
                "genes": features_in_words(self.model.autoencoder.genes).removesuffix(" genes"),
                "batches": listed(self.model.autoencoder.batches),
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
        """Train the autoencoder, derive the hierarchy, and fit the prior; returns the model itself.

        Shows its progress on a terminal and in a notebook; ``logging.getLogger("bdm").setLevel("WARNING")`` hides it.
        """
        if self.settings is None or self.prepared is None:
            raise InputError("A loaded model cannot be fitted again; make a new one from an AnnData.")
        self.fitted, self.history = fit(
            self.prepared, self.settings, tree=self.tree, seed=self.seed, device=self.device
        )
        warn_of_few_cells(self.fitted, self.fitted.cell_types)
        self.interpretation, self.last_extension = None, ()
        return self

    @property
    def model(self) -> BranchedModel:
        """The fitted model."""
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

    @property
    def donors(self) -> "DonorModel | None":
        """Distribution of donors, from which new ones are drawn; None where the model was fitted without donors."""
        return self.model.donors

    def _cells(self) -> AnnData:
        """Give the prepared cells of the model."""
        if self.prepared is None:
            raise InputError(
                "A loaded model holds no cells; give the cells that it was fitted on, as in "
                "BranchedDiffusion.load(path, adata=adata)."
            )
        return self.prepared

    @computing
    def get_latent_representation(self, adata: AnnData | None = None, *, keys: InputKeys = SAME) -> np.ndarray:
        """Encode cells: the means of their posteriors in the latent space of the autoencoder.

        Parameters
        ----------
        adata
            Cells of the model's cell types with raw counts of its genes; the cells that the model was fitted on, if not
            given.
        keys
            Where ``adata`` has cell types, batches and counts, if not where the model's data had them.

        Returns
        -------
        Array of cells x latent dimensions, in the order of ``adata``, for ``adata.obsm``.
        """
        cells = self._cells() if adata is None else encodable(cells_for(adata, self.model, keys), self.model, keys)
        return np.asarray(encode(cells, self.model.autoencoder).X)[:, self.model.layout.latent]

    @computing
    def generate(
        self,
        cells: int | Mapping[str, int] | pd.Series | pd.DataFrame,
        *,
        at: At = NOWHERE,
        extrapolate: bool = False,
        snapshot: float | None = None,
        shared_ancestors: bool = GenerationSettings.shared_ancestors,
        n_levels: int = SamplerSettings.n_levels,
        seed: int = 0,
    ) -> AnnData:
        """Generate new cells, as raw counts.

        Parameters
        ----------
        cells
            Number of cells of every type; numbers by type; or a table with the columns ``cell_type``, ``n_cells`` and,
            if any, ``batch`` and the names of covariates. Types are cell types, whose cells are spread over their
            sub-populations as the training cells are, or sub-populations.
        at
            Values of covariates by name: a number, or a range, such as ``{"time": (300, 500)}``, over which cells are
            spread evenly; where not given, drawn as those of the training cells.
        extrapolate
            Allow values of covariates that training cells do not have.
        snapshot
            Time at which a number of cells is generated, where cell types are snapshots that are named by their times:
            from cells of the snapshots before and after, moved by transport between the populations of both.
        shared_ancestors
            Let cell i of every population (`ancestor` in `obs`) descend from the same sample at the root.
        n_levels
            Noise levels between pure noise and a cell, on branches with a network.

        Returns
        -------
        AnnData as :func:`bdm.generation.generate.generate_cells` makes it; of several modalities, in the form of the
        model's data, such as a MuData. Its cells are ordered by cell type and sub-population; draw a part of them at
        random, such as by ``sc.pp.sample``.
        """
        require_package_of(self.model.form)
        settings = GenerationSettings(n_levels=n_levels, shared_ancestors=shared_ancestors)
        request = request_cells(self.model, cells, at=at, extrapolate=extrapolate, snapshot=snapshot)
        warn_of_few_cells(self.model, request.n_cells)
        return to_form(generate_cells(self.model, request, settings, seed=seed), self.model.form)

    @computing
    def predict_modality(
        self, adata: AnnData, modality: str = "prot", *, keys: InputKeys = SAME, n_samples: int = 200, seed: int = 0
    ) -> AnnData:
        """Predict the proteins or peaks of cells by their RNA, as distributions.

        Parameters
        ----------
        adata
            Cells with raw counts of the model's genes, and in ``obs`` values of the model's covariates. Their types are
            used if the model's column, or the given one, is in ``obs``; otherwise all types are possible.
        modality
            Modality of the model to predict.
        keys
            Where ``adata`` has cell types, batches and counts, if not where the model's data had them.
        n_samples
            Samples of each cell, from which means and intervals are computed.

        Returns
        -------
        AnnData as :func:`bdm.generation.modality.predict_modality` makes it.
        """
        chosen = modality_named(self.model, modality)
        question = question_of(cells_for(adata, self.model, keys), self.model, keys)
        return predict_modality(self.model, question, chosen, n_samples=n_samples, seed=seed)

    @computing
    def transmute(
        self,
        adata: AnnData,
        to: str,
        from_: str | Sequence[str] = (),
        *,
        at: At = NOWHERE,
        extrapolate: bool = False,
        keys: InputKeys = SAME,
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
        at
            New values of covariates by name, as in :meth:`generate`; cells keep theirs where not given.
        extrapolate
            Allow values of covariates that training cells do not have.
        keys
            Where ``adata`` has cell types, batches and counts, if not where the model's data had them.

        Returns
        -------
        AnnData as :func:`bdm.transmutation.transmute.transmuted_cells` describes it.
        """
        require_package_of(self.model.form)
        settings = SamplerSettings(n_levels=n_levels)
        cell_types = as_names(from_)
        cells = cells_for(adata, self.model, keys)
        sources = select_sources(
            cells, self.model, str(to), keys, cell_types=cell_types, at=at, extrapolate=extrapolate
        )
        transmuted = transmuted_cells(self.model, sources, settings, seed=seed).in_memory()
        return to_form(transmuted, self.model.form)

    @computing
    def evaluate(
        self,
        adata_test: AnnData | None = None,
        adata_new: AnnData | None = None,
        *,
        compare: Mapping[str, AnnData] | None = None,
        keys: InputKeys = SAME,
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
            Cells to evaluate, the set ``generated``; new ones, as many of each type as there are test cells, if not
            given.
        compare
            Other cells to evaluate in the same way, by name.
        keys
            Where these cells have cell types, batches and counts, if not where the model's data had them.
        n_repeats
            Most resamples of the cells over which scores are averaged; of 2,000 test cells or more, there is one.

        Returns
        -------
        Scores: ``overall`` (scores x sets, the floor first), ``by_type`` and ``by_population``; :mod:`bdm.pl` plots,
        and ``save`` writes them.

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
        settings = EvaluationSettings(n_repeats=n_repeats)
        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        new = adata_new
        if new is None:
            request = request_cells(self.model, _numbers_of(real.test))
            new = generate_cells(self.model, request, GenerationSettings(), seed=seed)
        given = {GENERATED: new, **(compare or {})}
        sets = {name: cells_for(cells, self.model, keys) for name, cells in given.items()}
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
        keys: InputKeys = SAME,
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
        keys
            As in :meth:`evaluate`, of ``adata`` and ``adata_test``.

        Returns
        -------
        Scores as a ``table``; :func:`bdm.pl.transmutation` and others plot them, and ``save`` writes them as a folder.

        Examples
        --------
        ::

            adata_transmuted = model.transmute(adata, to="NK")
            evaluation = model.evaluate_transmuted(adata_transmuted, adata, adata_test)
            bdm.pl.transmutation(evaluation)
        """
        from bdm.evaluation.cells import TRANSMUTED
        from bdm.transmutation import evaluate as transmutation

        real = real_cells_for(self.model, self._cells(), adata_test, keys)
        adata_transmuted, adata = cells_in(adata_transmuted), cells_for(adata, self.model, keys)
        names = ("adata_transmuted", "adata")
        after, rows = transmutation.check_transmuted(adata_transmuted, adata.obs_names, real, names=names)
        cells = transmutation.TransmutedCells(after, known_cells(adata[rows], self.model, keys))
        target = transmutation.read_target(adata_transmuted, "adata_transmuted")
        real, to = transmutation.relabel(real, target, populations_by(self.model))
        return transmutation.evaluate_transmutation(real, {TRANSMUTED: cells}, to, seed=seed)

    @computing
    def interpret(self, *, n_genes: int = InterpretationSettings.n_genes, seed: int = 0) -> AnnData:
        """Find the marker genes of each branch, and compare them with those in real cells.

        Parameters
        ----------
        n_genes
            Top genes of each branch that are compared.

        Returns
        -------
        AnnData of branches x genes, as :func:`bdm.interpretation.results.branches_adata` makes it, for scanpy to plot.
        """
        from bdm.interpretation.interpret import inputs_of, interpret
        from bdm.interpretation.results import branches_adata

        prepared = self._cells()
        request = request_cells(self.model, numbers_like(prepared.obs, self.model))
        generated = generate_cells(self.model, request, GenerationSettings(), seed=seed)
        inputs = inputs_of(self.model, prepared, generated, seed=seed)
        self.interpretation = interpret(inputs, InterpretationSettings(n_genes=n_genes), seed=seed)
        return branches_adata(self.interpretation)

    @computing
    def audit(self, settings: AuditSettings = AuditSettings(), *, models: Path | str | None = None) -> "Audit":
        """Run membership inference attacks on models and generated cells, compared with copies and chance.

        Models with the settings of this one are fitted to parts of its cells; this one need not be fitted.

        Parameters
        ----------
        settings
            Such as the number of folds, and of generated cells, which is to be as large as you will share.
        models
            Folder of the models of the folds, which are read from it, or fitted and written there.
        """
        from bdm.audit.folds import divide
        from bdm.audit.run import AuditedModels, audit_models

        if self.settings is None:
            raise InputError("A loaded model cannot be audited, as it holds no cells; make a new one from an AnnData.")
        fit = FitSettings(**{stage.name: getattr(self.settings, stage.name) for stage in fields(FitSettings)})
        folder = None if models is None else Path(models)
        how = AuditedModels(fit=fit, tree=self.tree, folder=folder, device=self.device, seed=self.seed)
        return audit_models(divide(self._cells(), settings, seed=self.seed), settings, how)

    @computing
    def simulate(self, design: "Design | dict[str, Any] | Path | str", *, seed: int | None = None) -> AnnData:
        """Simulate a designed experiment: samples, donors and conditions, with changes and artefacts that you choose.

        Parameters
        ----------
        design
            A design file (YAML), or a dictionary with the same content; see the page on designed experiments.
        seed
            Seed of every random draw; the design's, if not given.

        Returns
        -------
        AnnData as :func:`bdm.design.simulate.simulate_cells` makes it, with the truth; of several modalities, in the
        form of the model's data.

        Examples
        --------
        ::

            design = {
                "samples": {"donors": 3, "conditions": ["control", "stimulated"]},
                "changes": [{"name": "up", "condition": "stimulated", "genes": ["ISG15"], "log2_fold_change": 1}],
            }
            adata = model.simulate(design)
            adata.uns["truth"]["genes"]
        """
        from bdm.design.settings import read_design
        from bdm.design.simulate import simulate_cells

        require_package_of(self.model.form)
        return to_form(simulate_cells(self.model, read_design(design, seed=seed)), self.model.form)

    @computing
    def power(self, design: "Design | dict[str, Any] | Path | str") -> "PowerAnalysis":
        """Simulate and test a grid of designed experiments, to see how many donors and cells they need.

        Parameters
        ----------
        design
            As in :meth:`simulate`, with the grid in its section ``power``; see the page on power.

        Returns
        -------
        Tables of power and false discovery rates; :func:`bdm.pl.power` draws, and ``save`` writes them.
        """
        from bdm.power.analysis import power_analysis

        return power_analysis(self.model, design)

    @computing
    def extend(
        self,
        adata: AnnData,
        *,
        cell_types: str | Sequence[str] = (),
        keys: InputKeys = SAME,
        missing_as_zero: bool = False,
        seed: int = 0,
    ) -> "BranchedDiffusion":
        """Add cell types, without a change to all others; returns the model itself.

        Parameters
        ----------
        adata
            Cells of the new types with raw counts of the model's genes, matched by name or identifier, and their types
            in ``obs``.
        cell_types
            Types to add, in this order; all that the model lacks, if none are named.
        keys
            Where ``adata`` has cell types, batches and counts, if not where the model's data had them.
        missing_as_zero
            Treat genes that the cells lack as not expressed.
        """
        settings = ExtendSettings()
        new = select_new_cells(
            cells_for(adata, self.model, keys),
            self.model,
            cell_types=as_names(cell_types),
            keys=keys,
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        record = provenance(seed=seed, settings=asdict(settings))
        prepared = None if self.prepared is None else join_known_cells(new, self.model, self.prepared)
        steps = tuple(extend_all(self.model, new, settings, seed=seed, provenance=record))
        self.fitted, self.last_extension, self.prepared, self.interpretation = steps[-1].model, steps, prepared, None
        return self

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the model as a folder of safetensors and JSON, with its card in ``README.md``.

        Parameters
        ----------
        overwrite
            Replace a folder with a model.

        Raises
        ------
        InputError
            If the folder exists, cannot be written, or holds anything but a model.
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
        """Write the card of the model, as Markdown with the metadata of Hugging Face.

        Parameters
        ----------
        evaluation
            Evaluation of its generated cells, whose scores are shown with the floor's.
        audit
            Audit of models with its settings, whose verdict is shown.
        responses
            Responses of its cell types to conditions, whose expected errors are shown.
        license
            License of the data, in place of ``settings.prepare.license``.
        """
        from bdm.audit.results import audit_section
        from bdm.responses.results import responses_section

        section = None if audit is None else audit_section(audit, self.model)
        of_responses = None if responses is None else responses_section(responses, self.model.cell_types)
        return model_card(self.model, evaluation=evaluation, audit=section, responses=of_responses, license=license)

    @classmethod
    @checked
    def load(
        cls,
        path: Path | str,
        *,
        adata: AnnData | Path | str | None = None,
        keys: InputKeys = SAME,
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
        keys
            Where ``adata`` has cell types, batches and counts, if not where the model's data had them.
        n_threads
            Threads to compute with; all that the process may use, if not given.
        """
        model = cls.__new__(cls)
        model.device = device
        model.n_threads = n_threads
        model.fitted = load_model(Path(path), device=device)
        if adata is not None:
            model.prepared = fitted_cells(cells_for(adata, model.fitted, keys, on_disk=False), model.fitted, keys)
        return model


def settings_with(settings: PrepareSettings, **given: Any) -> PrepareSettings:
    """Complete settings by arguments, which may replace defaults alone."""
    default = PrepareSettings()
    for name, value in given.items():
        if (found := getattr(settings, name)) not in (getattr(default, name), value):
            raise InputError(f"{name} is {value!r}, and {found!r} in settings.prepare; give it in one place.")
    return replace(settings, **given)


def _numbers_of(cells: "TypedCells") -> pd.DataFrame:
    """Numbers of cells by type and values of covariates, to generate as many."""
    table = pd.DataFrame({"cell_type": cells.cell_type})
    table = table if cells.covariates is None else table.join(cells.covariates)
    return table.value_counts(sort=False).rename("n_cells").reset_index()
