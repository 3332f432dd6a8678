rule verdicts_run:
    input:
        cells=rules.prepare.output.cells,
    output:
        findings="results/{data}/{seed}/verdicts.csv",
    log:
        "results/{data}/{seed}/logs/verdicts.log",
    params:
        n_splits=lambda wildcards: JUDGED[wildcards.data]["n_splits"],
        n_faulty=lambda wildcards: JUDGED[wildcards.data]["n_faulty"],
    shell:
        "python {SCRIPTS}/verdicts.py {input.cells} {output.findings}"
        " --n-splits {params.n_splits}"
        " --n-faulty {params.n_faulty}"
        " --n-repeats 1"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule verdicts:
    input:
        findings=expand(rules.verdicts_run.output.findings, data=JUDGED, seed=SEEDS),
    output:
        table="results/verdicts.csv",
        text="results/verdicts.md",
    log:
        "results/logs/verdicts.log",
    shell:
        "python {SCRIPTS}/verdicts_table.py {output.table} {output.text} {input.findings} > {log} 2>&1"
