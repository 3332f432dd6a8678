EXTENDED = config["extend"]["datasets"]


def scores_of_left_out_types(data, seed):
    """Name the scores of all runs of a data set in which a type is left out."""
    every = EXTENDED[data].get("every", 1)
    numbers = range(every, EXTENDED[data]["n_types"] + 1, every)
    return expand(rules.extend_one.output.scores, data=data, seed=seed, number=numbers)


def with_flat(wildcards):
    """Give the option that also extends a flat model, for one in so many types as the configuration sets."""
    return "--with-flat" if int(wildcards.number) % EXTENDED[wildcards.data]["flat"] == 0 else ""


rule extend_one:
    input:
        cells=rules.prepare.output.cells,
    output:
        scores="results/{data}/{seed}/extend/one/{number}.csv",
    log:
        "results/{data}/{seed}/logs/extend_one-{number}.log",
    wildcard_constraints:
        number=r"\d+",
    params:
        with_flat=with_flat,
        options=options("extend"),
    shell:
        "python {SCRIPTS}/extend_one.py {input.cells} {output.scores}"
        " --number {wildcards.number}"
        " {params.with_flat}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule extend_in_turn:
    input:
        cells=rules.prepare.output.cells,
        joint="results/{data}/{seed}/cells/branched.h5ad",
    output:
        scores="results/{data}/{seed}/extend/in_turn.csv",
    log:
        "results/{data}/{seed}/logs/extend_in_turn.log",
    params:
        with_flat=lambda wildcards: "--with-flat" if EXTENDED[wildcards.data].get("flat_in_turn") else "",
        options=options("extend"),
    shell:
        "python {SCRIPTS}/extend_in_turn.py {input.cells} {input.joint} {output.scores}"
        " {params.with_flat}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule extend_reference:
    input:
        cells=rules.prepare.output.cells,
        joint="results/{data}/{seed}/cells/branched.h5ad",
    output:
        scores="results/{data}/{seed}/extend/reference.csv",
    log:
        "results/{data}/{seed}/logs/extend_reference.log",
    shell:
        "python {SCRIPTS}/extend_reference.py {input.cells} {input.joint} {output.scores}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule extend:
    input:
        one=[scores_of_left_out_types(data, seed) for data in EXTENDED for seed in SEEDS],
        reference=expand(rules.extend_reference.output.scores, data=EXTENDED, seed=SEEDS),
        in_turn=expand(rules.extend_in_turn.output.scores, data=EXTENDED, seed=SEEDS),
    output:
        table="results/extend.csv",
        text="results/extend.md",
        one="results/extend_one.png",
        in_turn="results/extend_in_turn.png",
    log:
        "results/logs/extend.log",
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "python {SCRIPTS}/extend_table.py {params.folder} {input} > {log} 2>&1"
