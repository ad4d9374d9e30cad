"""Our checkpoints as a VLMEvalKit model: prompts, images, generation and decoding stay its own.

Import only where vlmeval is needed: it costs ten seconds.
"""

from typing import Any

import torch
from PIL import Image

from interlace.errors import InputError
from interlace.evaluation.kit import load_vlmeval
from interlace.evaluation.settings import TOP_K, TOP_P

load_vlmeval()
from vlmeval.vlm.qwen3_vl.model import Qwen3VLChat  # noqa: E402


class LocalQwen3VL(Qwen3VLChat):
    """Qwen3VLChat over a model that is already loaded, on any device, greedy when asked to be.

    Qwen3VLChat's own constructor asserts a GPU, hard-codes flash attention and, in ms-vlmeval
    0.0.20, has no greedy decoding.
    """

    def __init__(
        self,
        model: torch.nn.Module | None,
        processor: Any,
        *,
        max_new_tokens: int = 1,
        do_sample: bool = False,
        temperature: float | None = None,
        custom_prompt: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        super(Qwen3VLChat, self).__init__(use_custom_prompt=custom_prompt)
        self.model, self.processor = model, processor
        self.min_pixels, self.max_pixels, self.total_pixels = min_pixels, max_pixels, None
        # The sampling values of Qwen3VLChat; None where greedy, so that the checkpoint's own
        # generation config does not bring them back.
        sampling = {"temperature": temperature, "top_p": TOP_P, "top_k": TOP_K}
        self.generate_kwargs = {
            "max_new_tokens": max_new_tokens,
            "repetition_penalty": 1.0,
            "do_sample": do_sample,
            **(sampling if do_sample else dict.fromkeys(sampling)),
        }
        self.system_prompt, self.post_process, self.verbose = None, False, False
        self.fps, self.nframe, self.FRAME_FACTOR, self.use_audio_in_video = 2, 128, 2, False
        self.use_vllm = self.use_lmdeploy = False
        self.model_path = "qwen3-vl-local"  # only searched for "omni"

    def message(self, dataset: Any, line: Any) -> list[dict[str, str]]:
        """Return the prompt of a dataset's row, chosen as VLMEvalKit's inference loop chooses it."""
        self.set_dump_image(dataset.dump_image)
        if getattr(dataset, "force_use_dataset_prompt", False):
            return dataset.build_prompt(line)
        if self.use_custom_prompt(dataset.dataset_name):
            return self.build_prompt(line, dataset=dataset.dataset_name)
        return dataset.build_prompt(line)

    def generate(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Return the answer to a message; InputError for an image of it that does not decode."""
        try:
            return super().generate(message, dataset)
        except (OSError, SyntaxError, ValueError):
            for part in message:
                if part["type"] == "image":
                    check_image(part["value"])
            raise

    def prepare(self, message: list[dict[str, str]], dataset: str) -> dict[str, torch.Tensor]:
        """Return what Qwen3VLChat would hand to generate() for one message: tensors on the CPU.

        Its own generate() runs up to that call, with a recorder in the model's place, so that
        messages, templates, image sizes and processor arguments are VLMEvalKit's by construction.
        """
        model, self.model = self.model, _Recorder(getattr(self.model, "dtype", torch.float32))
        try:
            self.generate(message, dataset=dataset)
            return self.model.inputs
        finally:
            self.model = model


def check_image(path: str) -> None:
    """Raise InputError for a prepared image that was torn since."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path}: the image does not decode ({error}); delete it and the JSON of its benchmark "
            "beside the folder of images, and prepare the benchmark again"
        ) from None


class _Recorder:
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.inputs: dict[str, torch.Tensor] = {}

    def generate(self, **inputs: Any) -> torch.Tensor:
        self.inputs = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        return self.inputs["input_ids"]
