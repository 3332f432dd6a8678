rule autoencoder:
    input:
        cells=f"{RUN}/prepared.h5ad",
    output:
        autoencoder=directory(f"{RUN}/autoencoders/{{autoencoder}}"),
    log:
        f"{RUN}/logs/autoencoder-{{autoencoder}}.log",
    benchmark:
        f"{RUN}/times/autoencoder-{{autoencoder}}.tsv"
    threads: n_threads
    params:
        program=lambda wildcards: program(wildcards.autoencoder),
        options=lambda wildcards: options("autoencoder", METHODS[wildcards.autoencoder], DATASETS[wildcards.data]),
    shell:
        "{params.program} autoencoder {input.cells} {output.autoencoder} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"


def autoencoder(wildcards, model):
    """Return the autoencoder of a model."""
    return rules.autoencoder.output.autoencoder.format(**wildcards, autoencoder=autoencoder_of(model))


rule hierarchy:
    input:
        autoencoder=lambda wildcards: autoencoder(wildcards, wildcards.hierarchy),
    output:
        hierarchy=f"{RUN}/hierarchies/{{hierarchy}}.json",
    log:
        f"{RUN}/logs/hierarchy-{{hierarchy}}.log",
    benchmark:
        f"{RUN}/times/hierarchy-{{hierarchy}}.tsv"
    params:
        program=lambda wildcards: tree_program(wildcards.hierarchy),
        options=lambda wildcards: options("hierarchy", METHODS[wildcards.hierarchy], DATASETS[wildcards.data]).format(
            **wildcards
        ),
    shell:
        "{params.program} {input.autoencoder} {output.hierarchy} {params.options} --seed {wildcards.seed} > {log} 2>&1"


def hierarchy(wildcards):
    """Return the tree of a model."""
    return rules.hierarchy.output.hierarchy.format(**wildcards, hierarchy=hierarchy_of(wildcards.model))


rule train:
    input:
        autoencoder=lambda wildcards: autoencoder(wildcards, wildcards.model),
        hierarchy=hierarchy,
    output:
        model=directory(f"{RUN}/models/{{model}}"),
    log:
        f"{RUN}/logs/train-{{model}}.log",
    benchmark:
        f"{RUN}/times/train-{{model}}.tsv"
    threads: n_threads
    params:
        program=lambda wildcards: program(wildcards.model),
        options=lambda wildcards: options("train", METHODS[wildcards.model], DATASETS[wildcards.data]),
    shell:
        "{params.program} train {input.autoencoder} {input.hierarchy} {output.model} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule train_peer:
    input:
        cells=f"{RUN}/prepared.h5ad",
    output:
        model=directory(f"{RUN}/models/{{peer}}"),
    log:
        f"{RUN}/logs/train-{{peer}}.log",
    benchmark:
        f"{RUN}/times/train-{{peer}}.tsv"
    params:
        program=lambda wildcards: program(wildcards.peer),
        options=lambda wildcards: METHODS[wildcards.peer].get("train", ""),
    shell:
        "{params.program} train {input.cells} {output.model} {params.options} --seed {wildcards.seed} > {log} 2>&1"


def model_of(wildcards):
    """Return the model of a method."""
    return f"{RUN}/models/{{model}}".format(**wildcards, model=METHODS[wildcards.method]["model"])


rule generate:
    input:
        model=model_of,
        cells=f"{RUN}/prepared.h5ad",
    output:
        cells=f"{RUN}/cells/{{method}}.h5ad",
    log:
        f"{RUN}/logs/generate-{{method}}.log",
    benchmark:
        f"{RUN}/times/generate-{{method}}.tsv"
    threads: n_threads
    params:
        program=lambda wildcards: program(wildcards.method),
    shell:
        "{params.program} generate {input.model} {output.cells} --cells-like {input.cells}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule predict_proteins:
    input:
        cells=f"{RUN}/prepared.h5ad",
        model=lambda wildcards: [] if METHODS[wildcards.method].get("peer") else model_of(wildcards),
    output:
        proteins=f"{RUN}/predicted/{{method}}.h5ad",
    log:
        f"{RUN}/logs/predict-{{method}}.log",
    benchmark:
        f"{RUN}/times/predict-{{method}}.tsv"
    params:
        program=lambda wildcards: program(wildcards.method),
        command=lambda wildcards, input: "predict" if not input.model else f"predict-modality {input.model}",
        options=lambda wildcards, input: "--modality prot" if input.model else "",
    shell:
        "{params.program} {params.command} {input.cells} {output.proteins} {params.options}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule interpret:
    input:
        model=f"{RUN}/models/branched",
        cells=f"{RUN}/prepared.h5ad",
        generated=f"{RUN}/cells/branched.h5ad",
    output:
        folder=directory(f"{RUN}/interpretation"),
    log:
        f"{RUN}/logs/interpret.log",
    benchmark:
        f"{RUN}/times/interpret.tsv"
    shell:
        "bdm interpret {input.model} {input.cells} {input.generated} {output.folder}"
        " --seed {wildcards.seed} > {log} 2>&1"


def compared(wildcards):
    """Return the cells of all compared methods except `branched`."""
    methods = [method for method in COMPARISONS[wildcards.comparison]["methods"] if method != "branched"]
    return expand(rules.generate.output.cells, data=wildcards.data, seed=wildcards.seed, method=methods)


rule evaluate:
    input:
        cells=f"{RUN}/prepared.h5ad",
        branched=f"{RUN}/cells/branched.h5ad",
        compared=compared,
    output:
        scores=f"{RUN}/{{comparison}}/scores.csv",
        n_cells=f"{RUN}/{{comparison}}/n_cells.csv",
    log:
        f"{RUN}/logs/evaluate-{{comparison}}.log",
    benchmark:
        f"{RUN}/times/evaluate-{{comparison}}.tsv"
    params:
        folder=subpath(output.scores, parent=True),
        compare=lambda wildcards, input: [f"--compare {Path(cells).stem}={cells}" for cells in input.compared],
        options=lambda wildcards: options("evaluate", DATASETS[wildcards.data]),
    shell:  # replaces files that are no outputs here, which Snakemake leaves
        "bdm evaluate {input.cells} {input.branched} {params.folder} {params.compare} {params.options}"
        " --seed {wildcards.seed} --force > {log} 2>&1"
