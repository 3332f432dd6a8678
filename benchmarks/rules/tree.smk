def labels(wildcards):
    """Give the flags that name the columns of an annotation."""
    return " ".join(f"--label {column}" for column in ANNOTATED[wildcards.data]["labels"])


rule tree_run:
    input:
        cells=rules.prepare.output.cells,
        hierarchy="results/{data}/{seed}/hierarchies/branched.json",
    output:
        overall="results/{data}/{seed}/tree/overall.csv",
        groups="results/{data}/{seed}/tree/groups.csv",
        figure="results/{data}/{seed}/tree/tree.png",
    log:
        "results/{data}/{seed}/logs/tree.log",
    params:
        folder=subpath(output.overall, parent=True),
        labels=labels,
    shell:
        "python {SCRIPTS}/tree.py {input.cells} {input.hierarchy} {params.folder}"
        " {params.labels}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule tree:
    input:
        overall=expand(rules.tree_run.output.overall, data=ANNOTATED, seed=SEEDS),
    output:
        table="results/tree.csv",
        groups="results/tree_groups.csv",
        text="results/tree.md",
    log:
        "results/logs/tree.log",
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "python {SCRIPTS}/tree_table.py {params.folder} {input.overall} > {log} 2>&1"
