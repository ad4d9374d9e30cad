# The paper's figures, the TTFT plots and the curves of fine-tuning.


rule figure_plan:
    input:
        GRID.path("{model}", "plans", "{plan}.json"),
    output:
        report(
            GRID.path("figures", "figure2_{plan}_{model}.svg"),
            caption="../report/figure2.rst",
            category="Figures",
            labels={
                "figure": "2: roles over depth",
                "model": "{model}",
                "plan": "{plan}",
            },
        ),
        GRID.path("figures", "figure2_{plan}_{model}.pdf"),
        GRID.path("figures", "figure2_{plan}_{model}.png"),
    log:
        f"{LOGS}/figure2/{{plan}}_{{model}}.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        label=lambda w: CONFIG["models"][w.model]["label"],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Figure 2: plan {wildcards.plan} of {wildcards.model} over depth"
    script:
        "../scripts/figure_plan.py"


rule figure_finetuning:
    input:
        GRID.evaluation_files(GRID.cells(6)),
    output:
        report(
            GRID.path("figures", "figure3_finetuning.svg"),
            caption="../report/figure3.rst",
            category="Figures",
            labels={
                "figure": "3: fine-tuning dense",
                "model": GRID.primary,
                "plan": "",
            },
        ),
        GRID.path("figures", "figure3_finetuning.pdf"),
        GRID.path("figures", "figure3_finetuning.png"),
    log:
        f"{LOGS}/figure3.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        label=CONFIG["models"][GRID.primary]["label"],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Figure 3: change after fine-tuning the dense model"
    script:
        "../scripts/figure_finetuning.py"


rule figure_similarity:
    input:
        [
            GRID.path(m, "scores", f"pack{k}.json")
            for m in GRID.scored_models()
            for k in (1, 2, 3)
        ],
    output:
        report(
            GRID.path("figures", "figure4_similarity.svg"),
            caption="../report/figure4.rst",
            category="Figures",
            labels={"figure": "4: similarity over depth", "model": "all", "plan": ""},
        ),
        GRID.path("figures", "figure4_similarity.pdf"),
        GRID.path("figures", "figure4_similarity.png"),
    log:
        f"{LOGS}/figure4.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        labels=[CONFIG["models"][m]["label"] for m in GRID.scored_models()],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Figure 4: similarity over depth"
    script:
        "../scripts/figure_similarity.py"


rule figures_ttft:
    input:
        GRID.ttft_files(),
    output:
        report(
            GRID.path("figures", "ttft_speedup.svg"),
            caption="../report/ttft_speedup.rst",
            category="Figures",
            labels={"figure": "TTFT speed-up", "model": "all", "plan": ""},
        ),
        report(
            GRID.path("figures", "ttft_breakdown.svg"),
            caption="../report/ttft_breakdown.rst",
            category="Figures",
            labels={"figure": "TTFT, where time goes", "model": "all", "plan": ""},
        ),
        report(
            GRID.path("figures", "ttft_tokens.svg"),
            caption="../report/ttft_tokens.rst",
            category="Figures",
            labels={"figure": "TTFT by visual tokens", "model": "all", "plan": ""},
        ),
        [
            GRID.path("figures", f"ttft_{kind}.{extension}")
            for kind in ("speedup", "breakdown", "tokens")
            for extension in ("pdf", "png")
        ],
    log:
        f"{LOGS}/figures_ttft.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        models=CONFIG["models"],
        method=CONFIG["experiments"]["method"],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "TTFT figures"
    script:
        "../scripts/figures_ttft.py"


rule figure_ttft_accuracy:
    input:
        evaluations=GRID.evaluation_files(GRID.accuracy_cells()),
        outcomes=GRID.outcome_files(GRID.accuracy_cells()),
        ttft=GRID.ttft_files([p for p in GRID.all_ttft() if p[0] == GRID.primary]),
    output:
        report(
            GRID.path("figures", "ttft_accuracy.svg"),
            caption="../report/ttft_accuracy.rst",
            category="Figures",
            labels={
                "figure": "Accuracy against TTFT",
                "model": GRID.primary,
                "plan": "",
            },
        ),
        GRID.path("figures", "ttft_accuracy.pdf"),
        GRID.path("figures", "ttft_accuracy.png"),
    log:
        f"{LOGS}/figure_ttft_accuracy.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        model=GRID.primary,
        label=CONFIG["models"][GRID.primary]["label"],
        seed=SEED,
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Accuracy against TTFT"
    script:
        "../scripts/figure_ttft_accuracy.py"


rule figure_training:
    input:
        GRID.path("{model}", "checkpoints", "{tuned}"),
    output:
        report(
            GRID.path("figures", "training_{tuned}_{model}.svg"),
            caption="../report/training.rst",
            category="Fine-tuning",
            labels={
                "curves": "loss, learning rate, gradient norm, speed",
                "model": "{model}",
                "plan": "{tuned}",
            },
        ),
        GRID.path("figures", "training_{tuned}_{model}.pdf"),
        GRID.path("figures", "training_{tuned}_{model}.png"),
    log:
        f"{LOGS}/training/{{tuned}}_{{model}}.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        label=lambda w: CONFIG["models"][w.model]["label"],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Curves of fine-tuning {wildcards.model}: {wildcards.tuned}"
    script:
        "../scripts/figure_training.py"


rule figure_training_overview:
    input:
        [GRID.checkpoint(m, v) for m, v in GRID.tuned_wanted()],
    output:
        report(
            GRID.path("figures", "training_overview.svg"),
            caption="../report/training_overview.rst",
            category="Fine-tuning",
            labels={
                "curves": "losses of all checkpoints",
                "model": "all",
                "plan": "all",
            },
        ),
        GRID.path("figures", "training_overview.pdf"),
        GRID.path("figures", "training_overview.png"),
    log:
        f"{LOGS}/training/overview.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        runs=[(CONFIG["models"][m]["label"], v) for m, v in GRID.tuned_wanted()],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Losses of all fine-tuned checkpoints"
    script:
        "../scripts/figure_training_overview.py"


rule figures:
    input:
        GRID.figure_files(),
    message:
        "Figures are drawn"
