"""Notes say what was measured, not what the paper did."""

from interlace.reporting.notes import kernel_notes, token_notes
from interlace.reporting.results import Results, Score, Timing


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


def test_the_kernels_of_sparse_variants_are_named():
    def results(**kernels):
        dense = {"kernels": "dense", "kernels_reason": "the weights are not 2:4 sparse"}
        return Results(
            timings={
                ("m", "wanda_2_4"): {
                    "AI2D": Timing(1.0, **kernels),
                    "POPE": Timing(1.0, **kernels),
                },
                ("m", "interlace-25-ft"): {"AI2D": Timing(1.3, **dense)},
            }
        )

    told = {"kernels": "dense", "kernels_reason": "there is no CUDA device"}
    assert kernel_notes(results(**told), "m") == [
        "TTFT of 2:4 variants: on dense kernels, which gain nothing from zeros (there is no CUDA "
        "device)."
    ]
    fast = {"kernels": "semi_structured", "kernels_reason": "252 weights"}
    assert kernel_notes(results(**fast), "m") == [
        "TTFT of 2:4 variants: on the semi-structured kernels of torch (252 weights)."
    ]
    assert kernel_notes(results(**told), "another") == []
    assert kernel_notes(results(), "m") == []  # timed before results said so
