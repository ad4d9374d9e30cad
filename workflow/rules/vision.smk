# Vision features once for all variants of a model, where finetune.levers.vision is `cached`.


rule vision_features:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        directory(GRID.path("{model}", "vision")),
    log:
        f"{LOGS}/{{model}}/vision_features.log",
    priority: 60
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        # Workers change nothing but the time: the script reads them where no rerun follows.
        settings={
            k: CONFIG["finetune"][k] for k in ("precision", "min_pixels", "max_pixels")
        },
    message:
        "Vision features of {wildcards.model}, once for all its variants"
    script:
        "../scripts/vision_features.py"
