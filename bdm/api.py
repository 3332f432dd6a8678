"""The Python API: a model that is made from raw counts, fitted, extended, saved and loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from bdm.audit.settings import AuditSettings
from bdm.computing import computing
from bdm.data.prepare import prepare
from bdm.data.read import cells_in
from bdm.errors import InputError
from bdm.extension.extend import ExtendSettings, extend_all
from bdm.extension.new_cells import join_known_cells, new_cells
from bdm.files import atomic_write
from bdm.fitted_model import FittedModel
from bdm.hierarchy.files import Tree
from bdm.hierarchy.ontology import given_tree
from bdm.hierarchy.tree import Clade, match_leaves
from bdm.model.card import model_card, save_with_card
from bdm.model.fit import Checkpoints, fit
from bdm.model.fitted_cells import fitted_cells
from bdm.model.model import load_model
from bdm.provenance import provenance, storable
from bdm.settings import FitSettings, InputKeys, PrepareSettings, Settings
from bdm.text import counted, listed, type_names
from bdm.threads import using_threads
from bdm.training import fabric

if TYPE_CHECKING:
    from bdm.audit.results import Audit
    from bdm.design.settings import Design
    from bdm.evaluation.results import Evaluation
    from bdm.extension.extend import FittedExtension


class BranchedDiffusion(FittedModel):
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
    label_key
        Column of ``obs`` with the cell type, as in ``settings.prepare`` if that has another than the default; None for
        cells without labels, which are all of one type, ``cell``.
    batch_key
        Column of ``obs`` with the batch, if any; as in ``settings.prepare`` if not given.
    donor_key
        Column of ``obs`` with the donor, if any; as in ``settings.prepare`` if not given. The model then learns how
        donors differ.
    tree
        Your own hierarchy of cell types, in place of clustering: nested lists such as
        ``[["B", "NK"], "Monocyte"]``, a file (Newick, or nested lists in ``.json``), what :func:`bdm.read_tree`
        returns, or ``cell-ontology``, with the column of terms in ``settings.hierarchy.ontology_key``.
    settings
        Settings of the stages; the defaults if not given.
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
        The last result of :meth:`interpret`, for :mod:`bdm.pl` to plot.
    last_extension
        The types of the last :meth:`extend`, for :mod:`bdm.pl` to plot.
    history
        Losses of the last :meth:`fit` by step, as tables of the ``autoencoder`` and the ``denoiser``; and a table of
        ``branches``, on which the network of the denoiser is compared with the closed form.
    """

    settings: Settings | None = None
    last_extension: "tuple[FittedExtension, ...]" = ()
    history: Mapping[str, pd.DataFrame] = MappingProxyType({})

    def __init__(
        self,
        adata: AnnData | Path | str,
        label_key: str | None = PrepareSettings.label_key,
        *,
        batch_key: str | None = None,
        donor_key: str | None = None,
        tree: Tree | None = None,
        settings: Settings | None = None,
        seed: int | None = None,
        device: str = "auto",
        n_threads: int | None = None,
    ):
        settings = Settings() if settings is None else settings
        if not isinstance(settings, Settings):
            raise InputError(
                f"`settings=` takes a bdm.Settings, not {type(settings).__name__}; pass your settings in one."
            )
        given = {"batch_key": batch_key, "donor_key": donor_key, "seed": seed}
        optional = {name: value for name, value in given.items() if value is not None}
        preparing = settings_with(settings.prepare, label_key=label_key, **optional)
        with using_threads(n_threads):
            self.prepared = prepare(cells_in(adata), preparing)
        self.tree = given_tree(tree, self.prepared.obs, settings.hierarchy)
        if isinstance(self.tree, Clade):
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
                "genes": f"{len(self.model.autoencoder.genes):,}",
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
    def fit(self, *, checkpoints: Checkpoints | None = None) -> "BranchedDiffusion":
        """Train the autoencoder, derive the hierarchy, and train the denoiser; returns the model itself.

        Shows its progress on a terminal and in a notebook; ``logging.getLogger("bdm").setLevel("WARNING")`` hides it.

        Parameters
        ----------
        checkpoints
            Checkpoints, from which interrupted training resumes.
        """
        if self.settings is None or self.prepared is None:
            raise InputError("A loaded model cannot be fitted again; make a new one from an AnnData.")
        found = fit(
            self.prepared,
            self.settings,
            tree=self.tree,
            seed=self.seed,
            device=self.device,
            checkpoints=checkpoints or Checkpoints(),
        )
        self.fitted, self.history = found.model, found.history
        self.interpretation, self.last_extension = None, ()
        return self

    @computing
    def audit(
        self,
        *,
        n_folds: int = AuditSettings.n_folds,
        donor_key: str | None = None,
        by_cell: bool = False,
        cells_only: bool = False,
        cells_per_training_cell: float = AuditSettings.cells_per_training_cell,
        models: Path | str | None = None,
    ) -> "Audit":
        """Find what attacks can tell about who was in the training data, beside copies of training cells and chance.

        Models with the settings of this one are fitted to parts of its cells; this one need not be fitted.

        Parameters
        ----------
        n_folds
            Number of divisions of the donors into members, reference and non-members.
        donor_key
            Column of ``obs`` with the donor; the donors of the model, if not given. Without any, cells are audited.
        by_cell
            Audit cells, although there are donors.
        cells_only
            Attack generated cells only, not the models, which takes the fit of a second model in each fold.
        cells_per_training_cell
            Number of generated cells for each training cell of a fold: as many as you will share.
        models
            Folder of the models of the folds, which are read from it, or fitted and written there.

        Raises
        ------
        InputError
            If there are fewer than six donors, all cell types have too few, or the model was loaded from a folder.
        """
        from bdm.audit.folds import divide
        from bdm.generation.audited import AuditedModels, audit_models

        if self.settings is None:
            raise InputError("A loaded model cannot be audited, as it holds no cells; make a new one from an AnnData.")
        checked = AuditSettings(
            n_folds=n_folds,
            donor_key=donor_key,
            by_cell=by_cell,
            cells_only=cells_only,
            cells_per_training_cell=cells_per_training_cell,
        )
        fit = FitSettings(**{of.name: getattr(self.settings, of.name) for of in fields(FitSettings)})
        folder = None if models is None else Path(models)
        how = AuditedModels(fit=fit, tree=self.tree, folder=folder, device=self.device, seed=self.seed)
        return audit_models(divide(self._cells(), checked, seed=self.seed), checked, how)

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
        AnnData as :func:`bdm.design.simulate.simulate_cells` makes it, with the truth.

        Raises
        ------
        InputError
            If the design is invalid, names what the model lacks, or the model is not fitted.

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
        from bdm.design.read import read_design, with_seed
        from bdm.design.simulate import design_record, simulate_cells

        checked = with_seed(read_design(design), seed)
        adata = simulate_cells(self.model, checked)
        adata.uns["bdm"] = storable(provenance(seed=checked.seed, design=design_record(checked)))
        return adata

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
        """Add cell types, or fit known ones again, without a change to all others; returns the model itself.

        Parameters
        ----------
        adata
            Cells of the new types with raw counts of the model's genes, matched by name or identifier, and their types
            in ``obs``.
        cell_types
            Types to add, in this order; all that the model lacks, if there are neither these nor types to update.
        update
            Known types to fit again, on these cells.
        label_key, batch_key, counts
            Columns of ``obs`` with the cell type and the batch, and where the raw counts are; as in the model's data,
            if not given.
        missing_as_zero
            Treat genes that the cells lack as not expressed.

        Raises
        ------
        InputError
            If there are no new types, a type to add is known or one to update is not, a type has too few cells, or
            genes are missing.
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
        steps = tuple(extend_all(self.model, new, settings, seed=seed, provenance=record))
        self.fitted, self.last_extension, self.prepared, self.interpretation = steps[-1].model, steps, prepared, None
        return self

    def save(self, path: Path | str) -> None:
        """Write the model as a folder of safetensors and JSON, with its card in ``README.md``."""
        with atomic_write(Path(path), folder_of="model.json") as folder:
            save_with_card(folder, self.model)

    def card(
        self, evaluation: "Evaluation | None" = None, *, audit: "Audit | None" = None, license: str | None = None
    ) -> str:
        """Write the card of the model, as Markdown with the metadata of Hugging Face.

        Parameters
        ----------
        evaluation
            Evaluation of its generated cells, whose scores are shown with the floor's.
        audit
            Audit of models with its settings, whose verdict is shown.
        license
            License of the data, in place of ``settings.prepare.license``.

        Raises
        ------
        InputError
            If the evaluation has no generated cells, the audit is of other settings, or the model is not fitted.
        """
        return model_card(self.model, evaluation=evaluation, audit=audit, license=license)

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


def settings_with(settings: PrepareSettings, **given: Any) -> PrepareSettings:
    """Complete settings by arguments; the default of ``label_key`` leaves it as it is.

    Raises
    ------
    InputError
        If an argument contradicts a setting that is not the default.
    """
    default = PrepareSettings()
    given = {name: value for name, value in given.items() if name != "label_key" or value != default.label_key}
    for name, value in given.items():
        if (found := getattr(settings, name)) not in (getattr(default, name), value):
            raise InputError(f"{name} is {value!r}, and {found!r} in settings.prepare; give it in one place.")
    return replace(settings, **given)
