# VLMEvalKit's benchmarks on every checkpoint.


rule prepare_benchmarks:
    input:
        GRID.benchmark_sources(),
    output:
        GRID.benchmark_files(),
    log:
        f"{LOGS}/prepare_benchmarks.log",
    priority: 90
    conda:
        "../../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        source=CONFIG["evaluation"]["source"],
        datasets=GRID.datasets(),
    message:
        "Benchmarks: check their files and unpack their images once"
    script:
        "../scripts/prepare_benchmarks.py"


rule evaluate:
    input:
        checkpoint=lambda w: GRID.checkpoint(w.model, w.variant),
        benchmarks=GRID.benchmark_files(),
    output:
        [
            GRID.path("{model}", "evaluation", "{variant}", "{mode}", f"{name}.json")
            for name in BENCHMARKS
        ],
    log:
        f"{LOGS}/{{model}}/evaluate/{{variant}}-{{mode}}.log",
    priority: 10
    conda:
        "../../envs/evaluate.yaml"
    threads: RESOURCES["evaluate"]["threads"]
    resources:
        gpu=RESOURCES["evaluate"]["gpu"],
        mem_mb=RESOURCES["evaluate"]["mem_mb"],
        runtime=RESOURCES["evaluate"]["runtime"],
    params:
        settings=CONFIG["evaluation"],
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        benchmarks=BENCHMARKS,
        seed=SEED,
    message:
        "Evaluate {wildcards.variant} of {wildcards.model}, mode {wildcards.mode}"
    script:
        "../scripts/evaluate.py"


rule evaluation:
    input:
        GRID.evaluation_files(),
    message:
        "Evaluation is complete"
