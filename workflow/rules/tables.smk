# The paper's six tables, ours beside the paper's, which methods differ, and the audit of the paper's
# own numbers.


rule table:
    input:
        unpack(lambda w: GRID.table_inputs(int(w.table))),
    output:
        report(
            GRID.path("tables", "table{table}.html"),
            caption="../report/table.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
        GRID.path("tables", "table{table}.csv"),
        GRID.path("tables", "table{table}.md"),
        GRID.path("tables", "table{table}.tex"),
    log:
        f"{LOGS}/table/{{table}}.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        models=CONFIG["models"],
        experiments=CONFIG["experiments"],
        benchmarks=BENCHMARKS,
        standin=STANDIN,
        intervals=CONFIG["reporting"]["intervals"],
        seed=SEED,
        code=CODE["reporting"],
    message:
        "Table {wildcards.table}"
    script:
        "../scripts/table.py"


rule significance:
    input:
        evaluations=GRID.evaluation_files(GRID.significance_cells()),
        outcomes=GRID.outcome_files(GRID.significance_cells()),
    output:
        report(
            GRID.path("tables", "significance.html"),
            caption="../report/significance.rst",
            category="Tables",
            labels={"table": "differences between methods"},
        ),
        GRID.path("tables", "significance.csv"),
        GRID.path("tables", "significance.md"),
        GRID.path("tables", "significance.tex"),
    log:
        f"{LOGS}/significance.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        tables=GRID.significance_tables(),
        models=CONFIG["models"],
        experiments=CONFIG["experiments"],
        standin=STANDIN,
        seed=SEED,
        code=CODE["reporting"],
    message:
        "Which methods differ: paired intervals and p-values"
    script:
        "../scripts/significance.py"


rule audit:
    output:
        report(
            GRID.path("audit.html"),
            caption="../report/audit.rst",
            category="Audit of the paper",
            labels={"content": "the paper's cells against each other"},
        ),
        GRID.path("audit.md"),
    log:
        f"{LOGS}/audit.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        code=CODE["reporting"],
    message:
        "Audit: recompute the paper's averages from its cells"
    script:
        "../scripts/audit.py"


rule tables:
    input:
        [GRID.table_files(t) for t in CONFIG["tables"]],
        GRID.significance_files(),
        GRID.ttft_table_files(),
        rules.audit.output,
    message:
        "Tables are written"


rule table1:
    input:
        GRID.table_files(1),
    message:
        "Table 1 is written"


rule table2:
    input:
        GRID.table_files(2),
    message:
        "Table 2 is written"


rule table3:
    input:
        GRID.table_files(3),
    message:
        "Table 3 is written"


rule table4:
    input:
        GRID.table_files(4),
    message:
        "Table 4 is written"


rule table5:
    input:
        GRID.table_files(5),
    message:
        "Table 5 is written"


rule table6:
    input:
        GRID.table_files(6),
    message:
        "Table 6 is written"
