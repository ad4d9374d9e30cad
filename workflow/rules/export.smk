# What else is made of the samples: pages to look at, the JSON of Qwen's fine-tuning code.


rule contact_sheet:
    input:
        GRID.path("samples"),
    output:
        report(
            directory(GRID.path("figures", "samples")),
            patterns=["page{page}.png"],
            caption="../report/contact_sheet.rst",
            category="Samples",
            labels={"content": "contact sheet, page {page}"},
        ),
    log:
        f"{LOGS}/contact_sheet.log",
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    params:
        seed=SEED,
        # Samples of real data are none, whatever model they are for.
        standin=[reason for reason in STANDIN if "data" in reason],
        code=CODE["reporting"],
    message:
        "Samples: contact sheets"
    script:
        "../scripts/contact_sheet.py"


rule export_conversations:
    input:
        GRID.path("samples"),
    output:
        directory(GRID.path("conversations")),
    log:
        f"{LOGS}/export_conversations.log",
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=RESOURCES["cpu"]["mem_mb"],
        runtime=RESOURCES["cpu"]["runtime"],
    message:
        "Samples: export to {output}/conversations.json with their images"
    script:
        "../scripts/export_conversations.py"


rule conversations:
    input:
        rules.export_conversations.output,
    message:
        "Samples are exported for Qwen's fine-tuning code"
