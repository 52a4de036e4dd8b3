"""A folder to a model hub, only when asked. The token comes from the environment and is kept nowhere."""

import os
from pathlib import Path

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def push(folder: Path, repo: str, *, private: bool = True, endpoint: str | None = None) -> str:
    """Upload the files to the model repository `repo`, made where it is not there; the address of the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)
    if token is None:
        raise ValueError(f"push: no token; put one that may write into the environment as {TOKENS[0]}")
    api = HfApi(endpoint=endpoint or os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        done = api.upload_folder(folder_path=folder, repo_id=repo, commit_message="Upload by modeseek export")
    except (HfHubHTTPError, OSError) as error:
        said = str(error).strip().splitlines()[0].replace(token, "the token")
        raise ValueError(f"push: {repo} was not uploaded: {said}") from None
    return str(done.commit_url)
