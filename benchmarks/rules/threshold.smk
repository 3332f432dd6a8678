rule cost:
    input:
        model="results/{data}/{seed}/models/{model}",
    output:
        cost="results/{data}/{seed}/costs/{model}.csv",
    log:
        "results/{data}/{seed}/logs/cost-{model}.log",
    params:
        n_cells=config["threshold"]["n_cells"],
    shell:
        "python {SCRIPTS}/cost.py {input.model} {output.cost}"
        " --cells {params.n_cells}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


use rule evaluate as evaluate_thresholds with:
    input:
        cells=rules.prepare.output.cells,
        branched="results/{data}/{seed}/cells/branched.h5ad",
        compared=expand(rules.generate.output.cells, method=["flat", *THRESHOLDS], allow_missing=True),
    output:
        overall="results/{data}/{seed}/threshold/overall.csv",
        by_type="results/{data}/{seed}/threshold/by_type.csv",
    log:
        "results/{data}/{seed}/logs/evaluate_thresholds.log",
    benchmark:
        "results/{data}/{seed}/times/evaluate_thresholds.tsv"


rule threshold:
    input:
        overall=expand(rules.evaluate_thresholds.output.overall, data=config["threshold"]["datasets"], seed=SEEDS),
        cost=expand(
            rules.cost.output.cost,
            data=config["threshold"]["datasets"],
            seed=SEEDS,
            model=["flat", *(f"threshold-{value}" for value in config["threshold"]["values"])],
        ),
    output:
        table="results/threshold.csv",
        figure="results/threshold.png",
    log:
        "results/logs/threshold.log",
    shell:
        "python {SCRIPTS}/threshold.py {output.table} {output.figure} {input.overall} > {log} 2>&1"
