"""One folder to one repository of the Hugging Face hub, and what it answers in one line.

The token is huggingface_hub's own (HF_TOKEN, or what `hf auth login` stored); it is given to nobody
else and taken out of every message. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.
"""

from dataclasses import dataclass
from pathlib import Path

from interlace.errors import InputError
from interlace.secrets import masked

MARK = "interlace.json"
# Of an earlier checkpoint: transformers would load a stale model.safetensors before new shards.
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


@dataclass(frozen=True)
class Upload:
    """Where a folder went: repository, commit and its address, and who can see it."""

    repo: str
    commit: str
    url: str
    private: bool


def find_token() -> str:
    """Return the hub's token; InputError if there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise InputError(
            "publish: no token for the hub; set HF_TOKEN to one that may write, or run `hf auth login`"
        )
    return token


def check_repo(repo: str) -> None:
    """Raise InputError for what is no id of a repository, `namespace/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"publish.namespace: {_line(error)}") from None
    if repo.count("/") != 1:
        raise InputError(f"publish.namespace: {repo!r} is not <namespace>/<name>")


def upload(folder: Path, repo: str, *, private: bool, message: str) -> Upload:
    """Bring the files in `folder` to `repo`, which is made if it is not there; return the commit.

    What the hub has already is not sent again, so that a run that was cut short goes on; where
    nothing is new there is no new commit. Weights of an earlier checkpoint are removed, other files
    of the repository stay. Raises InputError where the hub refuses or cannot be reached, and for a
    repository that is public though `private` is wanted or was not made by this function.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError
    from huggingface_hub.utils import disable_progress_bars, logging

    token = find_token()
    disable_progress_bars()
    logging.set_verbosity_info()  # a line now and then in place of bars
    api = HfApi(library_name="interlace")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        found = api.repo_info(repo)
        _check_found(repo, {s.rfilename for s in found.siblings or ()}, found.private, private)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            delete_patterns=list(_WEIGHTS),
        )
    except InputError:
        raise
    # RuntimeError: huggingface_hub's for a file, and those of its Xet library.
    except (HTTPError, OSError, RuntimeError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = masked(_line(error)).replace(token, "...")
        raise InputError(f"{repo}: {_advice(status, constants.ENDPOINT)} ({reason})") from None
    return Upload(repo, commit.oid, commit.commit_url, bool(found.private))


def _check_found(repo: str, files: set[str], is_private: bool | None, private: bool) -> None:
    if private and not is_private:
        raise InputError(
            f"{repo}: is a public repository; set publish.private: false, or make it private first"
        )
    if files - {".gitattributes"} and MARK not in files:
        raise InputError(
            f"{repo}: holds files that are not interlace's; choose another publish.namespace or"
            " rename the model"
        )


def _advice(status: int | None, endpoint: str) -> str:
    if status == 401:
        return "the hub does not accept the token; set HF_TOKEN to a valid one"
    if status == 403:
        return "the token may not write there; check publish.namespace and the token's permissions"
    if status is None:
        return f"the upload to {masked(endpoint)} broke off; run again, it goes on where it was"
    return f"the hub answered {status}; run again, it goes on where it was"


def _line(error: BaseException) -> str:
    cause = f": {type(error.__cause__).__name__}" if error.__cause__ else ""
    return (str(error).strip().splitlines() or [type(error).__name__])[0] + cause
