rule differential_privacy_fold:
    input:
        cells=rules.privacy_prepare.output.cells,
    output:
        table="results/differential_privacy/{data}/{seed}/{fold}.csv",
    log:
        "results/differential_privacy/{data}/{seed}/logs/{fold}.log",
    params:
        epsilons=" ".join(f"--epsilon {epsilon}" for epsilon in config["differential_privacy"]["epsilons"]),
        steps=config["differential_privacy"]["steps"],
        rates=" ".join(f"--learning-rate {rate}" for rate in config["differential_privacy"]["learning_rates"]),
    shell:
        "python {SCRIPTS}/differential_privacy.py {input.cells} {output.table}"
        " --number {wildcards.fold}"
        " {params.epsilons}"
        " --steps {params.steps}"
        " {params.rates}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule differential_privacy:
    input:
        tables=expand(
            rules.differential_privacy_fold.output.table,
            data=config["differential_privacy"]["datasets"],
            seed=SEEDS,
            fold=THIRDS,
        ),
    output:
        table="results/differential_privacy.csv",
        text="results/differential_privacy.md",
    log:
        "results/logs/differential_privacy.log",
    shell:
        "python {SCRIPTS}/differential_privacy_table.py {output.table} {output.text} {input.tables} > {log} 2>&1"
