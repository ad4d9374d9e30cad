"""Time to first token: dense and pruned in turns on the same samples of a benchmark.

From the moment the processor's outputs lie on the device, synchronised, to the first token's id on
the host: vision tower, projector, decoder prefill, logits of the last position, argmax.
"""

from interlace.evaluation.ttft.clock import first_token
from interlace.evaluation.ttft.outcome import speedup_interval
from interlace.evaluation.ttft.run import measure_ttft
from interlace.evaluation.ttft.sanity import check_sanity

__all__ = ["check_sanity", "first_token", "measure_ttft", "speedup_interval"]
