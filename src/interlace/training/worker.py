"""One rank of a training job under torchrun: `python -m interlace.training.worker job.json`."""

import sys

from interlace.io import read_json
from interlace.processes import die_with_parent
from interlace.training.launch import reported_failure


def main(arguments: list[str]) -> None:
    """Run the job that a JSON file describes, and leave the process group in order."""
    die_with_parent()
    with reported_failure(arguments[0]):
        import torch.distributed

        from interlace.training.run import run_job

        run_job(read_json(arguments[0]))
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
