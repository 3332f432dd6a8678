rule null_tests:
    input:
        cells=f"{config['data']}/{{by_donor}}.h5ad",
    output:
        tests="results/designs/{by_donor}/{seed}/real.csv",
    log:
        "results/designs/{by_donor}/{seed}/logs/null_tests.log",
    params:
        n_donors=config["designs"]["n_donors"],
        n_splits=config["designs"]["n_splits"],
    shell:
        "python {SCRIPTS}/null_tests.py {input.cells:q} {output.tests}"
        " --n-donors {params.n_donors}"
        " --n-splits {params.n_splits}"
        " --name 'real donors'"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule designs:
    input:
        tests=expand(rules.null_tests.output.tests, by_donor=BY_DONOR, seed=SEEDS[:1]),
    output:
        table="results/designs.csv",
        text="results/designs.md",
        figure="results/designs.png",
    log:
        "results/logs/designs.log",
    shell:
        "python {SCRIPTS}/null_table.py {output.table} {output.text} {output.figure} {input.tests} > {log} 2>&1"
