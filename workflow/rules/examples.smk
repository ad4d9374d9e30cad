# Samples to look at: what Dense and the main method said, and whether it counted.


rule example_sheet:
    input:
        results=GRID.evaluation_files(GRID.example_cells()),
        outcomes=GRID.outcome_files(GRID.example_cells()),
        benchmarks=GRID.benchmark_files(),
    output:
        report(
            GRID.path("examples", "{model}.html"),
            caption="../report/examples.rst",
            category="Examples",
            labels={"model": "{model}"},
        ),
    log:
        f"{LOGS}/examples/{{model}}.log",
    wildcard_constraints:
        model=GRID.primary,
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        samples=CONFIG["reporting"]["examples"],
        label=lambda w: CONFIG["models"][w.model]["label"],
        standin=STANDIN,
        code=CODE["reporting"],
    message:
        "Examples of {wildcards.model}"
    script:
        "../scripts/examples.py"


rule examples:
    input:
        GRID.example_files(),
    message:
        "The sheet of examples is written"
