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
        loading_scale=setting("autoencoder/loading_scale"),
        n_steps=setting("autoencoder/n_steps"),
        learning_rate=setting("autoencoder/learning_rate"),
        sub_populations=setting("autoencoder/sub_populations"),
        min_cells_per_sub_population=setting("autoencoder/min_cells_per_sub_population"),
        shared_decoder=switch("--shared-decoder", "autoencoder/shared_decoder"),
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked("autoencoder"),
    shell:
        "bdm autoencoder {input.cells} {output.model}"
        " --n-latent {params.n_latent}"
        " --loading-scale {params.loading_scale}"
        " --n-steps {params.n_steps}"
        " --learning-rate {params.learning_rate}"
        " --sub-populations {params.sub_populations}"
        " --min-cells-per-sub-population {params.min_cells_per_sub_population}"
        " {params.shared_decoder}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"
