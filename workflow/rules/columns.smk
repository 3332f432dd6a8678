# What the configuration names in the cells is looked for as it is read: a job that failed at it would have lost its results.


include: "../../bdm/data/header.py"
include: "../../bdm/audit/limits.py"


def check_columns(name, dataset):
    """Reject keys that name a column or counts that the cells do not have, and an audit of too few donors."""
    place, path, labels = f"datasets.{name}", dataset["path"], dataset["labels"]
    columns = known_columns(path, labels)
    for key, alternative in (("label_key", NO_LABELS), ("batch_key", ""), ("donor_key", "")):
        check_column(f"{place}.{key}", path, columns, dataset[key], alternative=alternative)
    check_symbols(f"{place}.prepare.gene_symbols", path, dataset["prepare"]["gene_symbols"])
    check_counts(f"{place}.counts", path, dataset["counts"])
    key = dataset["hierarchy"]["ontology_key"]
    if not may_be_prepared(key, columns):
        check_column(f"{place}.hierarchy.ontology_key", path, columns, key)
    for addition, of in dataset["extend"]["additions"].items():
        check_labels(f"{place}.extend.additions.{addition}.label_key", of, fitted=dataset["label_key"])
        check_counts(f"{place}.extend.additions.{addition}.counts", of["path"], of["counts"])
    if dataset["audit"]["run"] and dataset["donor_key"] is not None and columns is not None and labels is None:
        check_donors(f"{place}.audit.run", path, dataset["donor_key"], dataset["audit"]["n_folds"])


def check_donors(place, path, key, n_folds):
    """Reject an audit of too few donors, and warn of one that will be inconclusive, where the file has their number."""
    n_donors = count_values(path, key)
    remedy = "leave out `run: true`, or audit cells by `bdm audit --by-cell`, which shows nothing about donors"
    problem = None if n_donors is None else audit_rejection(n_donors, key, remedy=remedy)
    reject(place, problem and f"{path}: {problem}")
    doubt = None if n_donors is None else inconclusive(sides_of(n_donors, n_folds, fewest=False), "donor")
    if doubt is not None:
        logger.warning(f"{place}: {path}: this audit will be inconclusive: {doubt}.")


def check_column(place, path, columns, key, *, alternative="", table="obs"):
    """Reject a key that names none of the columns, where these are known."""
    if columns is not None and key is not None:
        argument = place.rpartition(".")[2]
        problem = column_rejection(key, columns, argument=argument, alternative=alternative, table=table)
        reject(place, problem and f"{path}: {problem}")


def check_labels(place, addition, *, fitted):
    """Reject an addition whose cells do not have the column of labels that is named, or, if none is, a usual one."""
    path, key = addition["path"], addition["label_key"]
    columns = known_columns(path)
    check_column(place, path, columns, key)
    if key is None and columns is not None:
        problem = labels_rejection(label_candidates(fitted), columns)
        reject(place, problem and f"{path}: {problem}")


def check_symbols(place, path, key):
    """Reject a key that names no column of var, where these are known; by default, the file is not opened for it."""
    columns = None if key is None or is_made_anew(path) else var_columns(path)
    check_column(place, path, columns, key, table="var")


def check_counts(place, path, source):
    """Reject a layer that the cells do not have, where these are known; by default, the file is not opened for it."""
    slots = None if source in (None, "auto") or is_made_anew(path) else slot_names(path)
    if slots is not None:
        problem = slot_rejection(source, slots)
        reject(place, problem and f"{path}: {problem}")


def may_be_prepared(key, columns):
    """Return whether a column may be one that bdm prepare writes, or renames: to NAME_input, or without slashes."""
    written = re.sub(r"(_input)+$", "", key or "") in PREPARED_COLUMNS
    return written or any("/" in column for column in columns or [])


def known_columns(path, labels=None):
    """List the columns of obs, with those of a table of labels; None where they cannot be known yet."""
    files = [file for file in (path, labels) if file is not None]
    return None if any(map(is_made_anew, files)) else obs_columns(*files)


def is_made_anew(file):
    """Return whether a rule makes a file, perhaps with other columns than now; the example is always the same."""
    return any(rule.is_producer(file) for rule in workflow.rules if rule.name != "example")


def is_whole_workflow():
    """Return whether no other workflow uses this one, whose rules for the cells would not be known yet."""
    checkout = Path(str(workflow.current_basedir)).resolve().parents[1]
    main = Path(workflow.main_snakefile).resolve().parent
    return workflow.modifier.is_main_snakefile() and main in (checkout, checkout / "workflow")


# The jobs of a workflow have the configuration that it was checked with.
if workflow.is_main_process and is_whole_workflow():

    for each in FITTED:
        check_columns(each, settings["datasets"][each])
