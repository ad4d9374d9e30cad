# One pass for every similarity score, shared out over shards; losses and SLEB's search.


rule score_windows:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        temp(GRID.shard_file("{model}", "{shard}")),
    log:
        f"{LOGS}/{{model}}/score_windows_{{shard}}.log",
    wildcard_constraints:
        shard="[0-9]+",
    priority: 50
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        # Workers change nothing but the time: the script reads them where no rerun follows.
        settings={k: v for k, v in CONFIG["scoring"].items() if k != "workers"},
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        parts=GRID.path("{model}", "scores", "parts"),
    message:
        "Scores {wildcards.model}: similarity of every window of layers in one pass"
    script:
        "../scripts/score_windows.py"


rule merge_windows:
    input:
        shards=lambda w: GRID.shard_files(w.model),
        samples=GRID.path("samples"),
    output:
        windows=GRID.path("{model}", "scores", "windows.parquet"),
        packs=[GRID.path("{model}", "scores", f"pack{k}.json") for k in (1, 2, 3)],
    log:
        f"{LOGS}/{{model}}/merge_windows.log",
    wildcard_constraints:
        model=GRID.model_pattern(imported=False),
    priority: 50
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        parts=GRID.path("{model}", "scores", "parts"),
        seed=SEED,
    message:
        "Scores {wildcards.model}: shards merged, means taken"
    script:
        "../scripts/merge_windows.py"


rule import_windows:
    input:
        base=GRID.path("{model}", "base"),
        released=lambda w: GRID.imported_files(w.model),
    output:
        windows=GRID.path("{model}", "scores", "windows.parquet"),
        packs=[GRID.path("{model}", "scores", f"pack{k}.json") for k in (1, 2, 3)],
    log:
        f"{LOGS}/{{model}}/import_windows.log",
    wildcard_constraints:
        model=GRID.model_pattern(imported=True),
    priority: 50
    conda:
        "../../envs/model.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    message:
        "Scores {wildcards.model}: imported from the released code's layout"
    script:
        "../scripts/import_windows.py"


rule export_windows:
    input:
        GRID.path("{model}", "scores", "windows.parquet"),
    output:
        GRID.released_files("{model}"),
    log:
        f"{LOGS}/{{model}}/export_windows.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    message:
        "Scores {wildcards.model}: written in the released code's layout"
    script:
        "../scripts/export_windows.py"


rule score_sleb:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        GRID.path("{model}", "scores", "sleb.json"),
    log:
        f"{LOGS}/{{model}}/score_sleb.log",
    priority: 60
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        # The memory for states changes nothing but the time: the script reads it itself.
        settings={k: v for k, v in CONFIG["sleb"].items() if k != "cache_gb"},
        ratio=GRID.sleb_ratio(),
        protect=CONFIG["plan"]["protect"],
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        seed=SEED,
    message:
        "Scores {wildcards.model}: SLEB's greedy search"
    script:
        "../scripts/score_sleb.py"


rule score_blocks:
    input:
        base=GRID.path("{model}", "base"),
        samples=GRID.path("samples"),
    output:
        GRID.path("{model}", "scores", "block_losses.json"),
    log:
        f"{LOGS}/{{model}}/score_blocks.log",
    priority: 60
    conda:
        "../../envs/model.yaml"
    threads: RESOURCES["score"]["threads"]
    resources:
        gpu=RESOURCES["score"]["gpu"],
        mem_mb=RESOURCES["score"]["mem_mb"],
        runtime=RESOURCES["score"]["runtime"],
    params:
        settings={k: v for k, v in CONFIG["sleb"].items() if k != "cache_gb"},
        dtype=lambda w: CONFIG["models"][w.model]["dtype"],
        seed=SEED,
    message:
        "Scores {wildcards.model}: loss without each single layer"
    script:
        "../scripts/score_blocks.py"


rule scores:
    input:
        GRID.score_files(),
    message:
        "Scores are measured"
