SHARING = config["sharing"]["runs"]
SHAPES = {"branched": "", "flat": "--flat"}


rule sharing_hierarchy:
    input:
        autoencoder=rules.many_autoencoder.output.autoencoder,
    output:
        hierarchy="results/many/{run}/sharing/{shape}.json",
    log:
        "results/many/{run}/logs/sharing_hierarchy-{shape}.log",
    params:
        options=lambda wildcards: SHAPES[wildcards.shape],
        seed=SEEDS[0],
    shell:
        "bdm hierarchy {input.autoencoder} {output.hierarchy} {params.options} --seed {params.seed} > {log} 2>&1"


rule sharing_train:
    input:
        autoencoder=rules.many_autoencoder.output.autoencoder,
        hierarchy=rules.sharing_hierarchy.output.hierarchy,
    output:
        model=directory("results/many/{run}/sharing/{shape}"),
    log:
        "results/many/{run}/logs/sharing_train-{shape}.log",
    params:
        seed=SEEDS[0],
    shell:
        "python {workflow.basedir}/methods/everywhere.py train"
        " {input.autoencoder} {input.hierarchy} {output.model}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule sharing_cost:
    input:
        model=rules.sharing_train.output.model,
    output:
        cost="results/many/{run}/sharing/{shape}_cost.csv",
    log:
        "results/many/{run}/logs/sharing_cost-{shape}.log",
    params:
        n_cells=config["sharing"]["n_cells"],
        seed=SEEDS[0],
    shell:
        "python {SCRIPTS}/cost.py {input.model} {output.cost}"
        " --cells {params.n_cells}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule sharing_generate:
    input:
        model=rules.sharing_train.output.model,
        cells=rules.many_prepare.output.cells,
    output:
        cells="results/many/{run}/sharing/{shape}.h5ad",
    log:
        "results/many/{run}/logs/sharing_generate-{shape}.log",
    params:
        seed=SEEDS[0],
    shell:
        "bdm generate {input.model} {output.cells}"
        " --cells-like {input.cells}"
        " --shared-ancestors"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule sharing_evaluate:
    input:
        cells=rules.many_prepare.output.cells,
        branched="results/many/{run}/sharing/branched.h5ad",
        flat="results/many/{run}/sharing/flat.h5ad",
    output:
        overall="results/many/{run}/sharing/evaluation/overall.csv",
    log:
        "results/many/{run}/logs/sharing_evaluate.log",
    params:
        folder=subpath(output.overall, parent=True),
        options=options("evaluate"),
        seed=SEEDS[0],
    shell:
        "bdm evaluate {input.cells} {params.folder} {input.branched}"
        " --compare flat={input.flat}"
        " {params.options}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule sharing:
    input:
        evaluations=expand(rules.sharing_evaluate.output.overall, run=SHARING),
        costs=expand(rules.sharing_cost.output.cost, run=SHARING, shape=SHAPES),
    output:
        table="results/sharing.csv",
        text="results/sharing.md",
    log:
        "results/logs/sharing.log",
    params:
        folders=[f"results/many/{run}/sharing" for run in SHARING],
    shell:
        "python {SCRIPTS}/sharing_table.py {output.table} {output.text} {params.folders} > {log} 2>&1"
