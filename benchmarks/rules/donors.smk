wildcard_constraints:
    fitted="|".join(FITTED_BY),


rule donors_split:
    input:
        cells=lambda wildcards: f"{config['data']}/{wildcards.data}.h5ad",
    output:
        training="results/donors/{data}/{seed}/training.h5ad",
        left_out="results/donors/{data}/{seed}/left_out.h5ad",
    log:
        "results/donors/{data}/{seed}/logs/split.log",
    shell:
        "python {SCRIPTS}/donors_split.py {input.cells:q} {output.training} {output.left_out}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule donors_fit:
    input:
        cells=rules.donors_split.output.training,
    output:
        model=directory("results/donors/{data}/{seed}/models/{fitted}"),
    log:
        "results/donors/{data}/{seed}/logs/fit-{fitted}.log",
    params:
        key=lambda wildcards: FITTED_BY[wildcards.fitted],
        options=lambda wildcards: WITH_DONORS[wildcards.data].get("fit", ""),
    shell:
        "bdm fit {input.cells} {output.model}"
        " --genes all"
        " --min-cells-per-gene 0"
        " {params.key}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule donors_generate:
    input:
        model=lambda wildcards: f"results/donors/{wildcards.data}/{wildcards.seed}/models/{DRAWN_BY[wildcards.drawn]}",
        left_out=rules.donors_split.output.left_out,
    output:
        cells="results/donors/{data}/{seed}/cells/{drawn}.h5ad",
    log:
        "results/donors/{data}/{seed}/logs/generate-{drawn}.log",
    wildcard_constraints:
        drawn="|".join(DRAWN_BY),
    shell:
        "python {SCRIPTS}/donors_generate.py {input.model} {input.left_out} {output.cells} {wildcards.drawn}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule donors_scdesigner:
    input:
        cells=rules.donors_split.output.training,
    output:
        cells="results/donors/{data}/{seed}/cells/scdesigner.h5ad",
    log:
        "results/donors/{data}/{seed}/logs/scdesigner.log",
    params:
        python=quote(config["peer_python"]),
    shell:
        "{params.python} {SCRIPTS}/donors_scdesigner.py {input.cells} {output.cells}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule donors_scores:
    input:
        left_out=rules.donors_split.output.left_out,
        training=rules.donors_split.output.training,
        cells=expand(
            "results/donors/{{data}}/{{seed}}/cells/{drawn}.h5ad",
            drawn=[*DRAWN_BY, "scdesigner"],
        ),
    output:
        scores="results/donors/{data}/{seed}/scores.csv",
    log:
        "results/donors/{data}/{seed}/logs/scores.log",
    shell:
        "python {SCRIPTS}/donors_scores.py {output.scores} {input.left_out} {input.training} {input.cells}"
        " > {log} 2>&1"


rule donors:
    input:
        scores=expand(rules.donors_scores.output.scores, data=WITH_DONORS, seed=SEEDS),
    output:
        table="results/donors.csv",
        text="results/donors.md",
    log:
        "results/logs/donors.log",
    shell:
        "python {SCRIPTS}/donors_table.py {output.table} {output.text} {input.scores} > {log} 2>&1"
