rule autoencoder:
    input:
        cells=rules.prepare.output.cells,
    output:
        autoencoder=directory("results/{data}/{seed}/autoencoders/{autoencoder}"),
    log:
        "results/{data}/{seed}/logs/autoencoder-{autoencoder}.log",
    benchmark:
        "results/{data}/{seed}/times/autoencoder-{autoencoder}.tsv"
    params:
        options=lambda wildcards: options("autoencoder", KNOWN[wildcards.autoencoder]),
    shell:
        "bdm autoencoder {input.cells} {output.autoencoder}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule random_tree:
    input:
        cells=rules.prepare.output.cells,
    output:
        tree="results/{data}/{seed}/random_tree.json",
    log:
        "results/{data}/{seed}/logs/random_tree.log",
    shell:
        "python {SCRIPTS}/random_tree.py {input.cells} {output.tree}" " --seed {wildcards.seed}" " > {log} 2>&1"


def autoencoder(wildcards):
    """Give the autoencoder that a model uses."""
    return rules.autoencoder.output.autoencoder.format(**wildcards, autoencoder=autoencoder_of(wildcards.model))


def tree(wildcards):
    """Give the random tree to the method whose options name it."""
    is_random = "random_tree" in hierarchy_options(wildcards)
    return rules.random_tree.output.tree.format(**wildcards) if is_random else []


def hierarchy_options(wildcards):
    """Give the options of a method's hierarchy."""
    return options("hierarchy", KNOWN[wildcards.model]).format(**wildcards)


rule hierarchy:
    input:
        autoencoder=autoencoder,
        tree=tree,
    output:
        hierarchy="results/{data}/{seed}/hierarchies/{model}.json",
    log:
        "results/{data}/{seed}/logs/hierarchy-{model}.log",
    benchmark:
        "results/{data}/{seed}/times/hierarchy-{model}.tsv"
    params:
        options=hierarchy_options,
    shell:
        "bdm hierarchy {input.autoencoder} {output.hierarchy}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule train:
    input:
        autoencoder=autoencoder,
        hierarchy=rules.hierarchy.output.hierarchy,
    output:
        model=directory("results/{data}/{seed}/models/{model}"),
    log:
        "results/{data}/{seed}/logs/train-{model}.log",
    benchmark:
        "results/{data}/{seed}/times/train-{model}.tsv"
    params:
        program=lambda wildcards: program(wildcards.model),
        options=lambda wildcards: options("train", KNOWN[wildcards.model]),
    shell:
        "{params.program} train {input.autoencoder} {input.hierarchy} {output.model}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule train_peer:
    input:
        cells=rules.prepare.output.cells,
    output:
        model=directory("results/{data}/{seed}/models/{peer}"),
    log:
        "results/{data}/{seed}/logs/train-{peer}.log",
    benchmark:
        "results/{data}/{seed}/times/train-{peer}.tsv"
    params:
        program=lambda wildcards: program(wildcards.peer),
        options=lambda wildcards: KNOWN[wildcards.peer].get("train", ""),
    shell:
        "{params.program} train {input.cells} {output.model}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


def model_of(wildcards):
    """Give the model that a method draws cells from: its own, or that of another method."""
    return "results/{data}/{seed}/models/{model}".format(**wildcards, model=KNOWN[wildcards.method]["model"])


rule generate:
    input:
        model=model_of,
        cells=rules.prepare.output.cells,
    output:
        cells="results/{data}/{seed}/cells/{method}.h5ad",
    log:
        "results/{data}/{seed}/logs/generate-{method}.log",
    benchmark:
        "results/{data}/{seed}/times/generate-{method}.tsv"
    params:
        program=lambda wildcards: program(wildcards.method),
        options=lambda wildcards: KNOWN[wildcards.method].get("generate", ""),
    shell:
        "{params.program} generate {input.model} {output.cells}"
        " --cells-like {input.cells}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"
