"""The words around a question, exactly as VLMEvalKit's dataset classes put them.

(`build_prompt` of ImageMCQDataset, ImageVQADataset, ImageYORNDataset, OCRBench, MIABench with
`use_custom_prompt=False`.) The base models learn these and no others.
"""

from collections.abc import Sequence


def choice_prompt(question: str, options: Sequence[str], hint: str | None = None) -> str:
    """Multiple choice: AI2D, RealWorldQA, VStar, ScienceQA, MMBench, HRBench."""
    lines = [f"Hint: {hint}"] if hint else []
    lines += [f"Question: {question}", "Options:"]
    lines += [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]
    lines += ["Please select the correct answer from the options above. ", ""]
    return "\n".join(lines)


def short_prompt(question: str) -> str:
    """ChartQA and TextVQA."""
    return f"{question}\nAnswer the question using a single word or phrase."
