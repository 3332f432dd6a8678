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
        name="real donors",
    shell:
        "python {SCRIPTS}/null_tests.py {input.cells:q} {output.tests}"
        " --n-donors {params.n_donors}"
        " --n-splits {params.n_splits}"
        " --name {params.name:q}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule fit_donors:
    input:
        cells=f"{config['data']}/{{by_donor}}.h5ad",
    output:
        model=directory("results/designs/{by_donor}/{seed}/model"),
    log:
        "results/designs/{by_donor}/{seed}/logs/fit_donors.log",
    shell:
        "bdm fit {input.cells:q} {output.model}"
        " --label-key cell_type"
        " --donor-key donor"
        " --genes all"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule generate_donors:
    input:
        model=rules.fit_donors.output.model,
    output:
        cells="results/designs/{by_donor}/{seed}/generated.h5ad",
    log:
        "results/designs/{by_donor}/{seed}/logs/generate_donors.log",
    params:
        design=f"{workflow.basedir}/designs/donors.yaml",
    shell:
        "bdm simulate {input.model} {params.design} {output.cells} --seed {wildcards.seed} > {log} 2>&1"


use rule null_tests as null_tests_generated with:
    input:
        cells=rules.generate_donors.output.cells,
    output:
        tests="results/designs/{by_donor}/{seed}/generated.csv",
    log:
        "results/designs/{by_donor}/{seed}/logs/null_tests_generated.log",
    params:
        n_donors=config["designs"]["n_donors"],
        n_splits=config["designs"]["n_splits"],
        name="generated donors",


rule designs:
    input:
        real=expand(rules.null_tests.output.tests, by_donor=BY_DONOR, seed=SEEDS[:1]),
        generated=expand(rules.null_tests_generated.output.tests, by_donor=BY_DONOR, seed=SEEDS[:1]),
    output:
        table="results/designs.csv",
        text="results/designs.md",
        figure="results/designs.png",
    log:
        "results/logs/designs.log",
    shell:
        "python {SCRIPTS}/null_table.py {output.table} {output.text} {output.figure} {input.real} {input.generated} > {log} 2>&1"
