# Time to first token: dense and its variants in turns. Each job lists its own files, since a group
# of variants shares one loading of the dense model.

for _index, (_model, _variants) in enumerate(GRID.ttft_groups()):

    rule:
        name:
            f"ttft_{_model}_{_index}"
        input:
            dense=GRID.checkpoint(_model, "dense"),
            variants=[GRID.checkpoint(_model, v) for v in _variants],
            benchmarks=GRID.benchmark_files(),
        output:
            GRID.ttft_files([(_model, v) for v in _variants]),
        log:
            f"{LOGS}/{_model}/ttft/{_index}.log",
        conda:
            "../../envs/evaluate.yaml"
        threads: RESOURCES["ttft"]["threads"]
        resources:
            gpu=RESOURCES["ttft"]["gpu"],
            mem_mb=RESOURCES["ttft"]["mem_mb"],
            runtime=RESOURCES["ttft"]["runtime"],
        params:
            model=_model,
            variants=_variants,
            settings=CONFIG["ttft"],
            evaluation={
                k: CONFIG["evaluation"][k]
                for k in ("prompt", "min_pixels", "max_pixels")
            },
            dtype=CONFIG["models"][_model]["dtype"],
            benchmarks=BENCHMARKS,
            seed=SEED,
        message:
            "TTFT: dense and pruned in turns"
        script:
            "../scripts/ttft.py"


rule ttft:
    input:
        GRID.ttft_files(),
    message:
        "TTFT is measured"
