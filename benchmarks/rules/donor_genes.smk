wildcard_constraints:
    share=r"[\d.]+",


rule donor_genes_list:
    input:
        cells=f"{config['data']}/{{data}}.h5ad",
    output:
        genes="results/donor_genes/{data}/{seed}/genes-{share}.txt",
    log:
        "results/donor_genes/{data}/{seed}/logs/list-{share}.log",
    shell:
        "python {SCRIPTS}/donor_genes.py {input.cells:q} {output.genes} --share {wildcards.share} > {log} 2>&1"


rule donor_genes_prepare:
    input:
        cells=f"{config['data']}/{{data}}.h5ad",
        genes=rules.donor_genes_list.output.genes,
    output:
        cells="results/donor_genes/{data}/{seed}/prepared-{share}.h5ad",
    log:
        "results/donor_genes/{data}/{seed}/logs/prepare-{share}.log",
    shell:
        "bdm prepare {input.cells:q} {output.cells}"
        " --label-key cell_type"
        " --donor-key donor"
        " --genes {input.genes}"
        " --seed {wildcards.seed}"
        " > {log} 2>&1"


rule donor_genes_audit:
    input:
        cells=rules.donor_genes_prepare.output.cells,
    output:
        audit=directory("results/donor_genes/{data}/{seed}/audits/{share}"),
    log:
        "results/donor_genes/{data}/{seed}/logs/audit-{share}.log",
    shell:
        "bdm audit {input.cells} {output.audit} --cells-only --seed {wildcards.seed} > {log} 2>&1"


rule donor_genes:
    input:
        audits=expand(
            rules.donor_genes_audit.output.audit,
            data=config["donor_genes"]["datasets"],
            seed=SEEDS,
            share=config["donor_genes"]["shares"],
        ),
    output:
        table="results/donor_genes.csv",
        text="results/donor_genes.md",
    log:
        "results/logs/donor_genes.log",
    shell:
        "python {SCRIPTS}/donor_genes_table.py {output.table} {output.text} {input.audits} > {log} 2>&1"
