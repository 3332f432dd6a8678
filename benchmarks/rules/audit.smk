FOLDS = range(1, config["audit"]["n_folds"] + 1)


rule audit_folds:
    input:
        cells=f"{RUN}/prepared.h5ad",
    output:
        cells=expand(f"{RUN}/folds/fold-{{fold}}.h5ad", fold=FOLDS, allow_missing=True),
    log:
        f"{RUN}/logs/audit-folds.log",
    params:
        folder=f"{RUN}/folds",
        n_folds=len(FOLDS),
    shell:
        "bdm audit {input.cells} {params.folder} --folds-only --n-folds {params.n_folds}"
        " --seed {wildcards.seed} > {log} 2>&1"


rule audit_own:
    input:
        cells=f"{RUN}/prepared.h5ad",
    output:
        audit=directory(f"{RUN}/audits/branched"),
    log:
        f"{RUN}/logs/audit-branched.log",
    params:
        n_folds=len(FOLDS),
    shell:
        "bdm audit {input.cells} {output.audit} --n-folds {params.n_folds} --seed {wildcards.seed} > {log} 2>&1"


rule audit_generate:
    input:
        cells=f"{RUN}/folds/fold-{{fold}}.h5ad",
    output:
        model=temp(directory(f"{RUN}/fold_cells/{{peer}}-{{fold}}")),
        cells=f"{RUN}/fold_cells/{{peer}}-{{fold}}.h5ad",
    log:
        f"{RUN}/logs/audit-generate-{{peer}}-{{fold}}.log",
    params:
        program=lambda wildcards: program(wildcards.peer),
        options=lambda wildcards: METHODS[wildcards.peer].get("train", ""),
    shell:
        "({params.program} train {input.cells} {output.model} {params.options} --seed {wildcards.seed}"
        " && {params.program} generate {output.model} {output.cells} --cells-like {input.cells}"
        " --seed {wildcards.seed}) > {log} 2>&1"


rule audit_peer:
    input:
        prepared=f"{RUN}/prepared.h5ad",
        cells=expand(f"{RUN}/fold_cells/{{peer}}-{{fold}}.h5ad", fold=FOLDS, allow_missing=True),
    output:
        audit=directory(f"{RUN}/audits/{{peer}}"),
    log:
        f"{RUN}/logs/audit-{{peer}}.log",
    params:
        cells=lambda wildcards, input: [f"--cells {cells}" for cells in input.cells],
        n_folds=len(FOLDS),
    shell:
        "bdm audit {input.prepared} {output.audit} {params.cells} --n-folds {params.n_folds}"
        " --seed {wildcards.seed} > {log} 2>&1"
