rule autoencoder:
    input:
        cells=rules.prepare.output.cells,
    output:
        model=directory("results/{dataset}/autoencoder"),
    log:
        "results/{dataset}/logs/autoencoder.log",
    benchmark:
        "results/{dataset}/benchmarks/autoencoder.tsv"
    conda:
        "../envs/bdm.yaml"
    params:
        n_latent=setting("autoencoder/n_latent"),
        n_hidden=setting("autoencoder/n_hidden"),
        kl_weight=setting("autoencoder/kl_weight"),
        n_steps=setting("autoencoder/n_steps"),
        seed=lookup(within=settings, dpath="seed"),
    shell:
        "bdm autoencoder {input.cells} {output.model}"
        " --n-latent {params.n_latent}"
        " --n-hidden {params.n_hidden}"
        " --kl-weight {params.kl_weight}"
        " --n-steps {params.n_steps}"
        " --seed {params.seed}"
        " > {log} 2>&1"
