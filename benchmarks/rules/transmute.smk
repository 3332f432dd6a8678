import shlex


def pairs(wildcards):
    """Give the options that name the pairs to transmute."""
    dataset = TRANSMUTED[wildcards.data]
    flags = [("--pair", pair) for pair in dataset.get("pairs", [])]
    flags += [("--condition", dataset["condition"])] if "condition" in dataset else []
    return " ".join(f"{flag} {shlex.quote(value)}" for flag, value in flags)


rule transmute_run:
    input:
        cells=rules.prepare.output.cells,
        branched="results/{data}/{seed}/models/branched",
        flat="results/{data}/{seed}/models/flat",
    output:
        scores="results/{data}/{seed}/transmute.csv",
    log:
        "results/{data}/{seed}/logs/transmute.log",
    params:
        pairs=pairs,
    shell:
        "python {SCRIPTS}/transmute.py {input.cells} {input.branched} {input.flat} {output.scores}"
        " {params.pairs}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule unseen_run:
    input:
        cells=rules.prepare.output.cells,
    output:
        scores="results/{data}/{seed}/unseen.csv",
    log:
        "results/{data}/{seed}/logs/unseen.log",
    params:
        condition=lambda wildcards: TRANSMUTED[wildcards.data]["condition"],
    shell:
        "python {SCRIPTS}/unseen.py {input.cells} {output.scores}"
        " --condition {params.condition:q}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule transmute:
    input:
        scores=expand(rules.transmute_run.output.scores, data=TRANSMUTED, seed=SEEDS),
        unseen=expand(
            rules.unseen_run.output.scores,
            data=[name for name, dataset in TRANSMUTED.items() if "condition" in dataset],
            seed=SEEDS,
        ),
    output:
        table="results/transmute.csv",
        text="results/transmute.md",
        figures=expand("results/transmute_{data}.png", data=TRANSMUTED),
    log:
        "results/logs/transmute.log",
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "python {SCRIPTS}/transmute_table.py {params.folder} {input} > {log} 2>&1"
