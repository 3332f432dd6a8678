wildcard_constraints:
    division=r"(thirds|\d+)-\d+",
    part="members|reference",


rule privacy_prepare:
    input:
        cells=f"{config['data']}/{{data}}.h5ad",
    output:
        cells="results/privacy/{data}/{seed}/prepared.h5ad",
    log:
        "results/privacy/{data}/{seed}/logs/prepare.log",
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " --label-key cell_type"
        " --donor-key donor"
        " --genes all"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule privacy_fit:
    input:
        cells=rules.privacy_prepare.output.cells,
    output:
        model=directory("results/privacy/{data}/{seed}/models/{division}-{part}"),
    log:
        "results/privacy/{data}/{seed}/logs/fit-{division}-{part}.log",
    params:
        n_others=lambda wildcards: DIVIDED[wildcards.data]["n_others"],
    shell:
        "python {SCRIPTS}/privacy_fit.py {input.cells} {output.model}"
        " --division {wildcards.division}"
        " --n-others {params.n_others}"
        " --part {wildcards.part}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule privacy_attacks:
    input:
        cells=rules.privacy_prepare.output.cells,
        members="results/privacy/{data}/{seed}/models/{division}-members",
        reference=lambda wildcards: f"results/privacy/{wildcards.data}/{wildcards.seed}/models/{same_reference(wildcards.data, wildcards.division)}-reference",
    output:
        table="results/privacy/{data}/{seed}/{division}.csv",
    log:
        "results/privacy/{data}/{seed}/logs/attacks-{division}.log",
    params:
        n_others=lambda wildcards: DIVIDED[wildcards.data]["n_others"],
        attacked=lambda wildcards: attacked_at(wildcards.division),
        draws=config["privacy"]["draws"],
    shell:
        "python {SCRIPTS}/privacy_attacks.py {input.cells} {output.table}"
        " --division {wildcards.division}"
        " --n-others {params.n_others}"
        " --members {input.members}"
        " --reference {input.reference}"
        " {params.attacked}"
        " --draws {params.draws}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule privacy:
    input:
        tables=[
            rules.privacy_attacks.output.table.format(data=data, seed=seed, division=division)
            for data in DIVIDED
            for seed in SEEDS
            for division in divisions_of(data)
        ],
    output:
        table="results/privacy.csv",
        text="results/privacy.md",
        figure="results/privacy.png",
    log:
        "results/logs/privacy.log",
    shell:
        "python {SCRIPTS}/privacy_table.py results {input.tables} > {log} 2>&1"
