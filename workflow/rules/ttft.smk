# Time to first token: dense and its variants in turns. Each job lists its own files, since a group
# of variants shares one loading of the dense model.
from itertools import product

for _index, ((_model, _variants), _group) in enumerate(
    product(GRID.ttft_groups(), GRID.benchmark_groups())
):

    rule:
        name:
            f"ttft_{_model}_{_index}"
        input:
            dense=GRID.checkpoint(_model, "dense"),
            variants=[GRID.checkpoint(_model, v) for v in _variants],
            benchmarks=GRID.benchmark_files(_group),
        output:
            GRID.ttft_files([(_model, v) for v in _variants], _group),
        log:
            f"{LOGS}/{_model}/ttft/{_index}.log",
        conda:
            "../../envs/evaluate.yaml"
        # On a workstation more than it has: Snakemake cuts it to all, and nothing disturbs the clock.
        threads: lambda w: 1024 if workflow.local_exec else RESOURCES["ttft"]["threads"]
        resources:
            gpu=RESOURCES["ttft"]["gpu"],
            mem_mb=RESOURCES["ttft"]["mem_mb"],
            runtime=RESOURCES["ttft"]["runtime"],
        params:
            model=_model,
            variants=_variants,
            settings={
                k: v for k, v in CONFIG["ttft"].items() if k != "variants_per_job"
            },
            evaluation={
                k: CONFIG["evaluation"][k]
                for k in ("prompt", "min_pixels", "max_pixels", "pixels")
            },
            dtype=CONFIG["models"][_model]["dtype"],
            benchmarks=_group,
            seed=SEED,
        message:
            "TTFT: dense and pruned in turns"
        script:
            "../scripts/ttft.py"


rule table_ttft:
    input:
        GRID.ttft_files(),
    output:
        report(
            GRID.path("tables", "ttft.html"),
            caption="../report/table_ttft.rst",
            category="Tables",
            labels={"table": "TTFT"},
        ),
        GRID.path("tables", "ttft.csv"),
        GRID.path("tables", "ttft.md"),
        GRID.path("tables", "ttft.tex"),
    log:
        f"{LOGS}/table/ttft.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        models=CONFIG["models"],
        intervals=CONFIG["reporting"]["intervals"],
        seed=SEED,
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Table of TTFT"
    script:
        "../scripts/table_ttft.py"


rule ttft:
    input:
        GRID.ttft_files(),
        GRID.ttft_table_files(),
    message:
        "TTFT is measured"
