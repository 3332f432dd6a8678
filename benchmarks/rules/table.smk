def peers_and_ablations(wildcards):
    """Give the cells of all methods that run with a seed, but `branched`."""
    methods = [method for method in methods_with(wildcards.data, wildcards.seed) if method != "branched"]
    return expand(rules.generate.output.cells, **wildcards, method=methods)


rule evaluate:
    input:
        cells=rules.prepare.output.cells,
        branched="results/{data}/{seed}/cells/branched.h5ad",
        compared=peers_and_ablations,
    output:
        overall="results/{data}/{seed}/evaluation/overall.csv",
        by_type="results/{data}/{seed}/evaluation/by_type.csv",
        properties="results/{data}/{seed}/evaluation/properties.csv",
    log:
        "results/{data}/{seed}/logs/evaluate.log",
    benchmark:
        "results/{data}/{seed}/times/evaluate.tsv"
    params:
        folder=subpath(output.overall, parent=True),
        compare=compare,
        options=lambda wildcards: options("evaluate", DESCRIBED[wildcards.data]),
    shell:
        "bdm evaluate {input.cells} {params.folder} {input.branched}"
        " {params.compare}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule table:
    input:
        overall=expand(rules.evaluate.output.overall, data=DATASETS, seed=SEEDS),
    output:
        table="results/table.csv",
        by_type="results/by_type.csv",
        text="results/table.md",
    log:
        "results/logs/table.log",
    params:
        folder=subpath(output.table, parent=True),
        steps=[f"--training {method}={','.join(training_steps(method))}" for method in METHODS],
    shell:
        "python {SCRIPTS}/table.py {params.folder} {input.overall}" " {params.steps}" " > {log} 2>&1"


rule peers:
    input:
        table=rules.table.output.table,
        properties=expand(rules.evaluate.output.properties, data=DATASETS, seed=SEEDS),
    output:
        text="results/peers.md",
        properties="results/properties.csv",
        figure="results/properties.png",
    log:
        "results/logs/peers.log",
    params:
        folder=subpath(output.text, parent=True),
        methods=[f"--method {method}" for method in config["peers"]["methods"]],
        beside=[f"--beside {method}" for method in config["peers"]["beside"]],
    shell:
        "python {SCRIPTS}/peers_table.py {params.folder} {input.table} {input.properties}"
        " {params.methods}"
        " {params.beside}"
        " > {log} 2>&1"
