def flags(name, values):
    """Give a flag with each of the values."""
    return " ".join(f"--{name} {value}" for value in values)


rule populations_run:
    input:
        cells=rules.prepare.output.cells,
        autoencoder="results/{data}/{seed}/autoencoders/branched",
    output:
        cells="results/{data}/{seed}/populations.csv",
    log:
        "results/{data}/{seed}/logs/populations.log",
    params:
        labels=lambda wildcards: flags("label", UNLABELLED[wildcards.data]["labels"]),
        resolutions=flags("resolution", config["populations"]["resolutions"]),
    shell:
        "python {SCRIPTS}/populations.py {input.cells} {input.autoencoder} {output.cells}"
        " {params.labels}"
        " {params.resolutions}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule populations:
    input:
        cells=expand(rules.populations_run.output.cells, data=UNLABELLED, seed=SEEDS),
    output:
        table="results/populations.csv",
        text="results/populations.md",
    log:
        "results/logs/populations.log",
    shell:
        "python {SCRIPTS}/populations_table.py {output.table} {output.text} {input.cells} > {log} 2>&1"
