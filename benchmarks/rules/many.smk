MANY = config["many"]["runs"]
ATLASES = {f"atlas_{n_cells}": {"n_cells": n_cells} for n_cells in config["atlas"]["n_cells"]}
RUNS = MANY | ATLASES


def n_threads(wildcards):
    """Give an atlas both cores of a small laptop."""
    return 2 if wildcards.run in ATLASES else 1


rule many_cells:
    output:
        cells="results/many/{run}/cells.h5ad",
        tree="results/many/{run}/truth.json",
    log:
        "results/many/{run}/logs/cells.log",
    wildcard_constraints:
        run="|".join(MANY),
    params:
        n_types=lambda wildcards: MANY[wildcards.run]["n_types"],
        n_cells=config["many"]["n_cells"],
        seed=SEEDS[0],
    shell:
        "python {SCRIPTS}/many_cells.py {output.cells} {output.tree}"
        " --n-types {params.n_types}"
        " --n-cells {params.n_cells}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule many_prepare:
    input:
        cells=rules.many_cells.output.cells,
    output:
        cells="results/many/{run}/prepared.h5ad",
    log:
        "results/many/{run}/logs/prepare.log",
    benchmark:
        "results/many/{run}/times/prepare.tsv"
    params:
        seed=SEEDS[0],
    shell:
        "bdm prepare {input.cells} {output.cells} --genes all --seed {params.seed} > {log} 2>&1"


rule many_autoencoder:
    input:
        cells=rules.many_prepare.output.cells,
    output:
        autoencoder=directory("results/many/{run}/autoencoder"),
    log:
        "results/many/{run}/logs/autoencoder.log",
    benchmark:
        "results/many/{run}/times/autoencoder.tsv"
    threads: n_threads
    params:
        options=lambda wildcards: options("autoencoder", RUNS[wildcards.run]),
        seed=SEEDS[0],
    shell:
        "bdm autoencoder {input.cells} {output.autoencoder} {params.options} --seed {params.seed} > {log} 2>&1"


rule many_hierarchy:
    input:
        autoencoder=rules.many_autoencoder.output.autoencoder,
    output:
        hierarchy="results/many/{run}/hierarchy.json",
        figure="results/many/{run}/hierarchy.png",
        page="results/many/{run}/hierarchy.html",
        table="results/many/{run}/hierarchy.csv",
    log:
        "results/many/{run}/logs/hierarchy.log",
    benchmark:
        "results/many/{run}/times/hierarchy.tsv"
    params:
        seed=SEEDS[0],
    shell:
        "bdm hierarchy {input.autoencoder} {output.hierarchy}"
        " --figure {output.figure}"
        " --page {output.page}"
        " --table {output.table}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule many_train:
    input:
        autoencoder=rules.many_autoencoder.output.autoencoder,
        hierarchy=rules.many_hierarchy.output.hierarchy,
    output:
        model=directory("results/many/{run}/model"),
    log:
        "results/many/{run}/logs/train.log",
    benchmark:
        "results/many/{run}/times/train.tsv"
    threads: n_threads
    params:
        options=lambda wildcards: options("train", RUNS[wildcards.run]),
        seed=SEEDS[0],
    shell:
        "bdm train {input.autoencoder} {input.hierarchy} {output.model}"
        " {params.options}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule many_generate:
    input:
        model=rules.many_train.output.model,
        cells=rules.many_prepare.output.cells,
    output:
        cells="results/many/{run}/generated.h5ad",
    log:
        "results/many/{run}/logs/generate.log",
    benchmark:
        "results/many/{run}/times/generate.tsv"
    threads: n_threads
    params:
        seed=SEEDS[0],
    shell:
        "bdm generate {input.model} {output.cells} --cells-like {input.cells} --seed {params.seed} > {log} 2>&1"


rule many_evaluate:
    input:
        cells=rules.many_prepare.output.cells,
        generated=rules.many_generate.output.cells,
    output:
        folder=directory("results/many/{run}/evaluation"),
    log:
        "results/many/{run}/logs/evaluate.log",
    benchmark:
        "results/many/{run}/times/evaluate.tsv"
    params:
        options=options("evaluate"),
        seed=SEEDS[0],
    shell:
        "bdm evaluate {input.cells} {output.folder} {input.generated}"
        " {params.options}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule many_interpret:
    input:
        model=rules.many_train.output.model,
        cells=rules.many_prepare.output.cells,
        generated=rules.many_generate.output.cells,
    output:
        folder=directory("results/many/{run}/interpretation"),
    log:
        "results/many/{run}/logs/interpret.log",
    benchmark:
        "results/many/{run}/times/interpret.tsv"
    params:
        seed=SEEDS[0],
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {output.folder}"
        " --seed {params.seed}"
        " > {log} 2>&1"


rule many:
    input:
        trees=expand(rules.many_cells.output.tree, run=MANY),
        evaluations=expand(rules.many_evaluate.output.folder, run=MANY),
        interpretations=expand(rules.many_interpret.output.folder, run=MANY),
    output:
        table="results/many.csv",
        text="results/many.md",
    log:
        "results/logs/many.log",
    params:
        runs=[f"results/many/{run}" for run in MANY],
    shell:
        "python {SCRIPTS}/many_table.py {output.table} {output.text} {params.runs} > {log} 2>&1"
