# VLMEvalKit's benchmarks on every checkpoint.


# One job per variant, mode and group of benchmarks: the groups share out the cost. They are prepared
# by group too, so that a benchmark more or less is nothing to the jobs of the other groups.
for _index, _group in enumerate(GRID.benchmark_groups(), start=1):

    rule:
        name:
            f"prepare_benchmarks_{_index}"
        input:
            GRID.benchmark_sources(_group),
        output:
            GRID.benchmark_files(_group),
        log:
            f"{LOGS}/prepare_benchmarks_{_index}.log",
        priority: 90
        conda:
            "../../envs/evaluate.yaml"
        threads: 1
        resources:
            mem_mb=RESOURCES["cpu"]["mem_mb"],
            runtime=RESOURCES["cpu"]["runtime"],
        params:
            source=CONFIG["evaluation"]["source"],
            datasets=GRID.datasets(_group),
        message:
            "Benchmarks: check their files and unpack their images once"
        script:
            "../scripts/prepare_benchmarks.py"

    rule:
        name:
            f"evaluate_{_index}"
        input:
            checkpoint=lambda w: GRID.checkpoint(w.model, w.variant),
            benchmarks=GRID.benchmark_files(_group),
        output:
            [
                GRID.path(
                    "{model}", "evaluation", "{variant}", "{mode}", f"{name}.{end}"
                )
                for end in ("json", "parquet")
                for name in _group
            ],
        log:
            f"{LOGS}/{{model}}/evaluate/{{variant}}-{{mode}}-{_index}.log",
        priority: 10
        conda:
            "../../envs/evaluate.yaml"
        threads: RESOURCES["evaluate"]["threads"]
        resources:
            gpu=RESOURCES["evaluate"]["gpu"],
            mem_mb=RESOURCES["evaluate"]["mem_mb"],
            runtime=RESOURCES["evaluate"]["runtime"],
        params:
            # The script reads all settings: what only changes the time is no reason to run again.
            settings={
                k: v
                for k, v in deciding(CONFIG["evaluation"]).items()
                if k not in ("benchmarks", "modes")
            },
            new_tokens=lambda w: CONFIG["evaluation"]["modes"][w.mode],
            dtype=lambda w: CONFIG["models"][w.model]["dtype"],
            benchmarks=_group,
            seed=SEED,
            sampling_seed=lambda w: GRID.seed(w.variant),
        message:
            "Evaluate {wildcards.variant} of {wildcards.model}, mode {wildcards.mode}"
        script:
            "../scripts/evaluate.py"


rule evaluation:
    input:
        GRID.evaluation_files(),
    message:
        "Evaluation is complete"
