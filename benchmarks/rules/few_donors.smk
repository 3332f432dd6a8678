wildcard_constraints:
    min_donors=r"\d+",


def cells_or_clones(wildcards):
    """Give the cells of a data set: a file, or a copy with clones."""
    if "clones" in FEW_DONORS[wildcards.data]:
        return "results/few_donors/{data}/{seed}/clones.h5ad".format(**wildcards)
    return f"{config['data']}/{wildcards.data}.h5ad"


rule few_donors_clones:
    input:
        cells=lambda wildcards: f"{config['data']}/{FEW_DONORS[wildcards.data]['of']}.h5ad",
    output:
        cells="results/few_donors/{data}/{seed}/clones.h5ad",
    log:
        "results/few_donors/{data}/{seed}/logs/clones.log",
    params:
        cell_type=lambda wildcards: FEW_DONORS[wildcards.data]["clones"],
    shell:
        "python {SCRIPTS}/clones.py {input.cells:q} {output.cells}"
        " --cell-type {params.cell_type:q}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule few_donors_prepare:
    input:
        cells=cells_or_clones,
    output:
        cells="results/few_donors/{data}/{seed}/prepared-{min_donors}.h5ad",
    log:
        "results/few_donors/{data}/{seed}/logs/prepare-{min_donors}.log",
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " --label-key cell_type"
        " --donor-key donor"
        " --genes all"
        " --min-donors {wildcards.min_donors}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule few_donors_audit:
    input:
        cells=rules.few_donors_prepare.output.cells,
    output:
        audit=directory("results/few_donors/{data}/{seed}/audits/{min_donors}"),
        models=directory("results/few_donors/{data}/{seed}/models/{min_donors}"),
    log:
        "results/few_donors/{data}/{seed}/logs/audit-{min_donors}.log",
    shell:
        "bdm audit {input.cells} {output.audit}"
        " --models {output.models}"
        " --cells-only"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule few_donors_scores:
    input:
        cells=rules.few_donors_prepare.output.cells,
        models=rules.few_donors_audit.output.models,
    output:
        scores="results/few_donors/{data}/{seed}/scores/{min_donors}.csv",
    log:
        "results/few_donors/{data}/{seed}/logs/scores-{min_donors}.log",
    shell:
        "python {SCRIPTS}/few_donors_scores.py {input.cells} {input.models} {output.scores}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule few_donors:
    input:
        audits=expand(
            rules.few_donors_audit.output.audit,
            data=FEW_DONORS,
            seed=SEEDS,
            min_donors=config["few_donors"]["min_donors"],
        ),
        scores=expand(
            rules.few_donors_scores.output.scores,
            data=FEW_DONORS,
            seed=SEEDS,
            min_donors=config["few_donors"]["min_donors"],
        ),
    output:
        table="results/few_donors.csv",
        text="results/few_donors.md",
    log:
        "results/logs/few_donors.log",
    shell:
        "python {SCRIPTS}/few_donors_table.py {output.table} {output.text} {input.audits} > {log} 2>&1"
