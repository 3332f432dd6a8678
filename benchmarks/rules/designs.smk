rule null_tests:
    input:
        cells=f"{config['data']}/{{by_donor}}.h5ad",
    output:
        tests="results/designs/{by_donor}/{seed}/real-{n_donors}.csv",
    log:
        "results/designs/{by_donor}/{seed}/logs/null_tests-{n_donors}.log",
    params:
        n_splits=config["designs"]["n_splits"],
        n_splits_composition=config["designs"]["n_splits_composition"],
        name="real donors",
        paired="",
    shell:
        "python {SCRIPTS}/null_tests.py {input.cells:q} {output.tests}"
        " --n-donors {wildcards.n_donors}"
        " --n-splits {params.n_splits}"
        " --n-splits-composition {params.n_splits_composition}"
        " --name {params.name:q}"
        " {params.paired}"
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
        design=f"{workflow.basedir}/designs/{{made}}.yaml",
    output:
        cells="results/designs/{by_donor}/{seed}/{made}.h5ad",
    log:
        "results/designs/{by_donor}/{seed}/logs/generate-{made}.log",
    wildcard_constraints:
        made="|".join(MADE_DONORS),
    shell:
        "bdm simulate {input.model} {input.design:q} {output.cells} --seed {wildcards.seed} > {log} 2>&1"


use rule null_tests as null_tests_generated with:
    input:
        cells=rules.generate_donors.output.cells,
    output:
        tests="results/designs/{by_donor}/{seed}/{made}-{n_donors}.csv",
    log:
        "results/designs/{by_donor}/{seed}/logs/null_tests-{made}-{n_donors}.log",
    params:
        n_splits=config["designs"]["n_splits"],
        n_splits_composition=config["designs"]["n_splits_composition"],
        name=lambda wildcards: MADE_DONORS[wildcards.made],
        paired=lambda wildcards: "--paired" if wildcards.made == "pairs" else "",


rule designs:
    input:
        real=expand(
            rules.null_tests.output.tests,
            by_donor=BY_DONOR,
            seed=SEEDS,
            n_donors=config["designs"]["n_donors"],
        ),
        generated=expand(
            rules.null_tests_generated.output.tests,
            by_donor=BY_DONOR,
            seed=SEEDS,
            made=MADE_DONORS,
            n_donors=config["designs"]["n_donors"],
        ),
    output:
        table="results/designs.csv",
        text="results/designs.md",
        figure="results/designs.png",
    log:
        "results/logs/designs.log",
    shell:
        "python {SCRIPTS}/null_table.py {output.table} {output.text} {output.figure} {input.real} {input.generated} > {log} 2>&1"
