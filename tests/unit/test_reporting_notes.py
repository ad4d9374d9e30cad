"""Notes say what was measured, not what the paper did."""

from interlace.reporting.notes import token_notes
from interlace.reporting.results import Results, Score


def test_the_limits_on_new_tokens_are_the_results_own():
    scores = {
        ("m", "dense", "cot"): {"AI2D": Score(50.0, max_new_tokens=256)},
        ("m", "dense", "limited"): {"AI2D": Score(50.0, max_new_tokens=50)},
    }
    assert token_notes(Results(scores=scores)) == [
        "CoT: at most 256 new tokens, in the paper 16384.",
        "Limited: at most 50 new tokens, in the paper 50.",
    ]
    assert token_notes(Results()) == []
