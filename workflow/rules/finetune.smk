# Plans -> checkpoints: layers dropped, chosen layers tuned; or 2:4 sparse weights.

from interlace.training.recipe import of_the_weights


rule finetune:
    input:
        base=GRID.path("{model}", "base"),
        plan=lambda w: GRID.plan_file(w.model, w.tuned),
        samples=GRID.path("samples"),
        vision=lambda w: GRID.vision_inputs(w.model),
    output:
        directory(GRID.path("{model}", "checkpoints", "{tuned}")),
    log:
        f"{LOGS}/{{model}}/finetune/{{tuned}}.log",
    priority: 40
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["finetune"]["threads"]
    resources:
        **GRID.node_resources(),
        gpu=RESOURCES["finetune"]["gpu"],
        mem_mb=RESOURCES["finetune"]["mem_mb"],
        runtime=RESOURCES["finetune"]["runtime"],
    params:
        # What decides the weights. The script reads all settings, where no rerun follows.
        settings=of_the_weights(CONFIG["finetune"]),
        seed=lambda w: GRID.seed(w.tuned),
    message:
        "Fine-tune {wildcards.model}: {wildcards.tuned}"
    script:
        "../scripts/finetune.py"


rule prune:
    input:
        base=GRID.path("{model}", "base"),
        plan=lambda w: GRID.path(w.model, "plans", f"{w.plan}.json"),
    output:
        directory(GRID.path("{model}", "checkpoints", "{plan}")),
    log:
        f"{LOGS}/{{model}}/prune/{{plan}}.log",
    wildcard_constraints:
        plan=f"{METHOD}-[0-9]+(-s[0-9]+)?",
    priority: 40
    conda:
        "../../envs/model.yaml"
    threads: 1
    resources:
        # The weights are copied in main memory: as much of it as where a model is run, no GPU.
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        seed=lambda w: GRID.seed(w.plan),
    message:
        "Prune {wildcards.model} by plan {wildcards.plan}, no tuning"
    script:
        "../scripts/prune.py"


rule sparsify:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        directory(GRID.path("{model}", "checkpoints", "{method}_2_4")),
    log:
        f"{LOGS}/{{model}}/sparsify/{{method}}_2_4.log",
    wildcard_constraints:
        method="wanda|magnitude",
    priority: 40
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        settings=CONFIG["sparsity"],
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        seed=SEED,
    message:
        "Sparsify {wildcards.model}: {wildcards.method} 2:4"
    script:
        "../scripts/sparsify.py"


rule checkpoints:
    input:
        [GRID.checkpoint(m, v) for m, v in GRID.checkpoints_wanted()],
    message:
        "Checkpoints are made"
