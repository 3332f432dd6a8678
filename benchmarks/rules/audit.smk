wildcard_constraints:
    fold=r"\d+",
    own="|".join(AUDITED_OWN),


rule audit_prepare:
    input:
        cells=f"{config['data']}/{{data}}.h5ad",
    output:
        cells="results/audit/{data}/{seed}/prepared.h5ad",
    log:
        "results/audit/{data}/{seed}/logs/prepare.log",
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " --label-key cell_type"
        " --donor-key donor"
        " --genes all"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule audit_folds:
    input:
        cells=rules.audit_prepare.output.cells,
    output:
        cells=expand("results/audit/{{data}}/{{seed}}/folds/fold-{fold}.h5ad", fold=FOLDS),
    log:
        "results/audit/{data}/{seed}/logs/folds.log",
    params:
        folder="results/audit/{data}/{seed}/folds",
        n_folds=len(FOLDS),
    shell:
        "bdm audit-folds {input.cells} {params.folder}"
        " --n-folds {params.n_folds}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule audit_own:
    input:
        cells=rules.audit_prepare.output.cells,
    output:
        audit=directory("results/audit/{data}/{seed}/audits/{own}"),
        models=directory(expand("results/audit/{{data}}/{{seed}}/models/{{own}}/fold-{fold}/members", fold=FOLDS)),
    log:
        "results/audit/{data}/{seed}/logs/audit-{own}.log",
    params:
        models="results/audit/{data}/{seed}/models/{own}",
        options=lambda wildcards: AUDITED_OWN[wildcards.own],
        n_folds=len(FOLDS),
    shell:
        "bdm audit {input.cells} {output.audit}"
        " {params.options}"
        " --models {params.models}"
        " --n-folds {params.n_folds}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule audit_train:
    input:
        cells="results/audit/{data}/{seed}/folds/fold-{fold}.h5ad",
    output:
        model=directory("results/audit/{data}/{seed}/models/{peer}/fold-{fold}"),
    log:
        "results/audit/{data}/{seed}/logs/train-{peer}-{fold}.log",
    params:
        program=lambda wildcards: program(wildcards.peer),
        options=lambda wildcards: KNOWN[wildcards.peer].get("train", ""),
    shell:
        "{params.program} train {input.cells} {output.model}"
        " {params.options}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


def model_of_fold(wildcards):
    """Give the model that a method fitted to the members of a fold; the models of bdm are those of its audit."""
    folder = "results/audit/{data}/{seed}/models/{method}/fold-{fold}".format(**wildcards)
    return f"{folder}/members" if wildcards.method in AUDITED_OWN else folder


rule audit_generate:
    input:
        model=model_of_fold,
        cells="results/audit/{data}/{seed}/folds/fold-{fold}.h5ad",
    output:
        cells="results/audit/{data}/{seed}/cells/{method}/fold-{fold}.h5ad",
    log:
        "results/audit/{data}/{seed}/logs/generate-{method}-{fold}.log",
    params:
        program=lambda wildcards: program(wildcards.method),
    shell:
        "{params.program} generate {input.model} {output.cells}"
        " --cells-like {input.cells}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule audit_peer:
    input:
        prepared=rules.audit_prepare.output.cells,
        cells=expand("results/audit/{{data}}/{{seed}}/cells/{{peer}}/fold-{fold}.h5ad", fold=FOLDS),
    output:
        audit=directory("results/audit/{data}/{seed}/audits/{peer}"),
    log:
        "results/audit/{data}/{seed}/logs/audit-{peer}.log",
    params:
        cells=lambda wildcards, input: " ".join(f"--cells {cells}" for cells in input.cells),
        n_folds=len(FOLDS),
    shell:
        "bdm audit {input.prepared} {output.audit}"
        " {params.cells}"
        " --n-folds {params.n_folds}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule audit_scores:
    input:
        prepared=rules.audit_prepare.output.cells,
        cells=expand("results/audit/{{data}}/{{seed}}/cells/{{method}}/fold-{fold}.h5ad", fold=FOLDS),
    output:
        scores="results/audit/{data}/{seed}/scores/{method}.csv",
    log:
        "results/audit/{data}/{seed}/logs/scores-{method}.log",
    params:
        n_folds=len(FOLDS),
    shell:
        "python {SCRIPTS}/audit_scores.py {input.prepared} {output.scores} {input.cells}"
        " --n-folds {params.n_folds}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


def audits_of(methods):
    """Give the audits of methods, and the scores of their cells."""
    of = {"data": config["audit"]["datasets"], "seed": SEEDS, "method": methods}
    return {
        "audits": expand("results/audit/{data}/{seed}/audits/{method}", **of),
        "scores": expand("results/audit/{data}/{seed}/scores/{method}.csv", **of),
    }


rule audit:
    input:
        **audits_of(config["audit"]["methods"]),
    output:
        table="results/audit.csv",
        text="results/audit.md",
        figure="results/audit.png",
    log:
        "results/logs/audit.log",
    shell:
        "python {SCRIPTS}/audit_table.py results {input.audits} > {log} 2>&1"


rule audit_settings:
    input:
        **audits_of(AUDITED_OWN),
    output:
        table="results/audit_settings/audit.csv",
        text="results/audit_settings/audit.md",
        figure="results/audit_settings/audit.png",
    log:
        "results/logs/audit_settings.log",
    shell:
        "python {SCRIPTS}/audit_table.py results/audit_settings {input.audits} > {log} 2>&1"
