# Check columns and cell types of the configuration before any job starts: a job that failed on them would lose its results.


include: f"{PACKAGE}/applications/audit/limits.py"


def check_columns(name, dataset):
    """Reject unknown columns and cell types, and warn of an audit of few donors."""
    place, path, labels = f"datasets.{name}", dataset["path"], dataset["labels"]
    columns = known_columns(path, labels)
    for key, alternative in (("label_key", NO_LABELS), ("batch_key", ""), ("donor_key", ""), ("section_key", "")):
        check_column(f"{place}.{key}", path, columns, dataset[key], alternative=alternative)
    for key in dataset["covariate_key"]:
        check_column(f"{place}.covariate_key", path, columns, key)
    for addition, of in dataset["extend"]["additions"].items():
        check_labels(f"{place}.extend.additions.{addition}.label_key", of, fitted=dataset["label_key"])
    if dataset["respond"]["run"] or dataset["respond"]["predictions"]:
        check_responses(f"{place}.respond", dataset, columns)
    for key in ("time_key", "lineage_key") if dataset["lineage"]["run"] else []:
        check_column(f"{place}.lineage.{key}", path, columns, dataset["lineage"][key])
    check_types(place, dataset)
    if dataset["audit"]["run"] and dataset["donor_key"] is not None and columns is not None and labels is None:
        check_donors(f"{place}.audit.run", path, dataset["donor_key"], dataset["audit"]["n_folds"])


def check_responses(place, dataset, columns):
    """Reject unknown columns of conditions, and an unknown control, condition or cell type of predictions."""
    path, respond = dataset["path"], dataset["respond"]
    for key in respond["condition_key"]:
        check_column(f"{place}.condition_key", path, columns, key)
    check_column(f"{place}.dose_key", path, columns, respond["dose_key"])
    values = [known_values(path, key, labels=dataset["labels"]) for key in respond["condition_key"]]
    if None not in values:
        conditions = sorted(map(SEPARATOR.join, product(*values)))
        if respond["control"] is not None or len(values) == 1:  # else combinations may be absent
            problem = control_rejection(respond["control"], conditions)
            reject(f"{place}.control", problem and f"{path}: {problem}")
        known = related_conditions(conditions, respond)
        controls = usual_controls(conditions) if respond["control"] is None else [respond["control"]]
        for name, of in respond["predictions"].items() if known is not None else ():
            problem = None if of["condition"] in controls else condition_rejection(of, known, respond)
            reject(f"{place}.predictions.{name}.condition", problem and f"{path}: {problem}")
    for name, of in respond["predictions"].items() if respond["dose_key"] is None else ():
        problem = f"dose is {of['dose']}, but doses are not known; name their column (respond.dose_key)."
        reject(f"{place}.predictions.{name}.dose", problem if of["dose"] is not None else None)
    types = known_values(path, dataset["label_key"], labels=dataset["labels"])
    for name, of in respond["predictions"].items() if types is not None else ():
        for cell_type in of["cell_types"]:
            problem = None if cell_type in types else unknown_type(cell_type, types, of=f"{path} has")
            reject(f"{place}.predictions.{name}.cell_types", problem)


def related_conditions(conditions, respond):
    """List conditions of cells, their parts, and conditions with features; None if features are unknown yet."""
    features, separator, with_features = respond["condition_features"], respond["combination_separator"], []
    if features is not None:
        with_features = None if is_made_anew(features) else row_names(Path(features))
    parts = [part.strip() for name in conditions for part in name.split(separator)] if separator is not None else []
    return None if with_features is None else list(dict.fromkeys([*conditions, *parts, *with_features]))


def condition_rejection(prediction, known, respond):
    """Message for a condition without a dose, or that is no combination of known parts, else None."""
    condition, separator = prediction["condition"], respond["combination_separator"]
    if respond["dose_key"] is not None and prediction["dose"] is None:
        perturbation, _, dose = condition.rpartition(SEPARATOR)
        if not perturbation or any(map(math.isnan, parse_doses(dose, separator))):
            return f"Condition {condition!r} has no dose; name it by `dose=`."
        condition = perturbation
    parts = [condition] if separator is None or condition in known else condition.split(separator)
    unknown = [part for part in map(str.strip, parts) if part not in known]
    return unknown_condition(unknown[0], known) if unknown else None


def check_donors(place, path, key, n_folds):
    """Warn if donors are too few for an audit, or if it will be inconclusive; skip files without their number."""
    n_donors = len(n_cells_by_value(path, key) or ())
    if 0 < n_donors < MIN_DONORS:
        logger.warning(f"{place}: {path}: {cells_for_donors(n_donors)}")
    elif n_donors and (doubt := explain_inconclusive(equal_sides(n_donors, n_folds), "donor")):
        logger.warning(f"{place}: {path}: this audit will be inconclusive: {doubt}.")


def check_types(place, dataset):
    """Reject transmutations, designs and additions with cell types outside the model, if its types are known."""
    types = known_values(dataset["path"], dataset["label_key"], labels=dataset["labels"])
    if types is not None:
        prepare = dataset["prepare"]
        small = [name for name, number in types.items() if number < prepare["min_cells_per_type"]]
        left_out = {*prepare["leave_out"], *small}
        types = {name: number for name, number in types.items() if name not in left_out}
        for name, of in dataset["transmute"]["transmutations"].items():
            at = f"{place}.transmute.transmutations.{name}"
            check_names(f"{at}.to", [of["to"]], types, of=f"{dataset['path']} has", left_out=left_out)
            check_names(f"{at}.from", of["from"], types, of=f"{dataset['path']} has", left_out=left_out)
        for name, of in dataset["simulate"]["designs"].items():
            at = f"{place}.simulate.designs.{name}"
            check_names(at, types_in_design(of["path"]), types, of=f"{dataset['path']} has", left_out=left_out)
    for name, of in dataset["extend"]["additions"].items():
        new = known_values(of["path"], of["label_key"] or dataset["label_key"])
        if new is not None:
            check_names(f"{place}.extend.additions.{name}.cell_types", of["cell_types"], new, of=f"{of['path']} has")


def check_names(place, names, types, *, of, left_out=()):
    """Reject names of unknown or omitted cell types."""
    for name in names:
        if name in left_out:
            reject(
                place, f"The cell type {name!r} is left out, by leave_out or min_cells_per_type of the section prepare."
            )
        reject(place, None if may_be_fitted(name, types) else unknown_type(name, types, of=of))


def known_values(path, key, *, labels=None):
    """Count the cells of each value of a column; None if unknown yet, or in a table of labels."""
    return None if key is None or labels is not None or is_made_anew(path) else n_cells_by_value(path, key)


def types_in_design(path):
    """List the cell types in the file of a design; bdm itself rejects invalid designs."""
    try:
        design = yaml.safe_load(Path(in_place(path)).read_text(encoding="utf-8"))
        composition, samples = design.get("composition") or {}, design.get("samples") or {}
        changed = [part.get("in") or [] for part in [*design.get("changes", []), *composition.get("shifts", [])]]
        numbers = [of for of in (composition.get("proportions"), samples.get("cells")) if isinstance(of, dict)]
        return [str(name) for of in [*changed, *numbers] for name in ([of] if isinstance(of, str) else of)]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError):
        return []


def check_column(place, path, columns, key, *, alternative=""):
    """Reject a key that names an unknown column, if the columns are known."""
    if columns is not None and key is not None:
        argument = place.rpartition(".")[2]
        problem = column_rejection(key, columns, argument=argument, alternative=alternative)
        reject(place, problem and f"{path}: {problem}")


def check_labels(place, addition, *, fitted):
    """Reject an addition without the named column of labels, or, if none is named, without a usual one."""
    path, key = addition["path"], addition["label_key"]
    columns = known_columns(path)
    check_column(place, path, columns, key)
    if key is None and columns is not None:
        problem = labels_rejection(label_candidates(fitted), columns)
        reject(place, problem and f"{path}: {problem}")


def known_columns(path, labels=None):
    """List the columns of obs and of a table of labels; None if unknown yet."""
    files = [file for file in (path, labels) if file is not None]
    return None if any(map(is_made_anew, files)) else obs_columns(*files)


def is_made_anew(file):
    """Return whether a rule makes a file, perhaps with other columns; the example always stays the same."""
    return any(rule.is_producer(file) for rule in workflow.rules if rule.name != "example")


def is_whole_workflow():
    """Return whether this workflow runs on its own; rules of an importing workflow are still unknown here."""
    checkout = Path(str(workflow.current_basedir)).resolve().parents[1]
    main = Path(workflow.main_snakefile).resolve().parent
    return workflow.modifier.is_main_snakefile() and main in (checkout, checkout / "workflow")


# Check once: jobs of the workflow run with the same configuration.
if workflow.is_main_process and is_whole_workflow():

    for each in FITTED:
        check_columns(each, settings["datasets"][each])
