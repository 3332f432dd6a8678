rule train:
    input:
        autoencoder=rules.autoencoder.output.model,
        hierarchy=rules.hierarchy.output.hierarchy,
    output:
        model=directory("results/{dataset}/model"),
    log:
        "results/{dataset}/logs/train.log",
    benchmark:
        "results/{dataset}/benchmarks/train.tsv"
    wildcard_constraints:
        dataset=one_of(FITTED),
    conda:
        "../envs/bdm.yaml"
    params:
        prior=setting("train/prior"),
        n_steps=setting("train/n_steps"),
        width=setting("train/width"),
        n_layers=setting("train/n_layers"),
        learning_rate=setting("train/learning_rate"),
        devices=devices,
        seed=lookup(within=settings, dpath="seed"),
        settings=tracked("train"),
    shell:
        "bdm train {input.autoencoder} {input.hierarchy} {output.model}"
        " --prior {params.prior}"
        " --n-steps {params.n_steps}"
        " --width {params.width}"
        " --n-layers {params.n_layers}"
        " --learning-rate {params.learning_rate}"
        " {params.devices}"
        " --seed {params.seed}"
        " --threads {threads}"
        " > {log} 2>&1"


use rule train as train_flat with:
    input:
        autoencoder=rules.autoencoder.output.model,
        hierarchy=rules.hierarchy_flat.output.hierarchy,
    output:
        model=directory("results/{dataset}/flat/model"),
    log:
        "results/{dataset}/logs/train_flat.log",
    benchmark:
        "results/{dataset}/benchmarks/train_flat.tsv"
