"""Uploads of a pipeline: its own card in place of diffusers' generic one, and nothing that is not the pipeline's."""

import filecmp
import os
import shutil
import tempfile
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.utils import logging
from huggingface_hub import CommitInfo, create_repo, hf_hub_download, upload_folder
from huggingface_hub.errors import RemoteEntryNotFoundError

from ..models.lora import LORA_WEIGHT_NAME
from .records import CARD_NAME, EVALUATION, TRAINING


logger = logging.get_logger(__name__)

RECORDS = [TRAINING, EVALUATION]
# An allow-list: checkpoints, logs and whatever else lies in the folder stay there.
UPLOADED = [CARD_NAME, *RECORDS, "model_index.json", "unet/*", "scheduler/*", "vae/*", "samples/*", LORA_WEIGHT_NAME]


class SharedPipeline(DiffusionPipeline):
    """A [`DiffusionPipeline`] that is uploaded with the card that `model_card.py` makes.

    The records and pictures of the folder that a pipeline was loaded from come along, as long as its weights are still
    those of that folder: what was measured of others is not true of these.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> None:
        """As [`DiffusionPipeline.save_pretrained`]; with `push_to_hub` the folder gets its card and is uploaded.

        Raises:
            ValueError: for a record in the folder that is not of its form.
        """
        folder = os.fspath(save_directory)
        super().save_pretrained(folder, safe_serialization, variant, max_shard_size, use_flashpack=use_flashpack)
        if push_to_hub:
            copy_records(self.name_or_path, folder)
            repo_id = repo_id or os.path.basename(os.path.abspath(folder))
            upload_pipeline(folder, repo_id, commit_message, private, token, create_pr)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> CommitInfo:
        """As [`DiffusionPipeline.push_to_hub`], with our card; a pipeline in a `subfolder` gets none."""
        with tempfile.TemporaryDirectory() as folder:
            super().save_pretrained(folder, safe_serialization, variant)
            copy_records(self.name_or_path, folder)
            return upload_pipeline(folder, repo_id, commit_message, private, token, create_pr, subfolder)


def upload_pipeline(
    folder: str | Path,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """Write the card of a saved pipeline and upload both, with its records and pictures, in one commit.

    A README.md of the folder that was not made by `model_card.py` is uploaded as it is. One that is in the repo already
    is replaced only if it was made by `model_card.py` and the folder has records to make a new one of; else it stays,
    with a warning.

    Raises:
        ValueError: for a record that is not of its form; nothing has been created then.
    """
    from .model_card import build_card  # late: else `python -m mmdiff_pipelines.pipelines.model_card` finds it loaded

    build_card(folder, repo_id)
    repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    has_card = not subfolder and _renew_card(Path(folder), repo_id, token)
    return upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=subfolder,
        allow_patterns=UPLOADED,
        ignore_patterns=None if has_card else CARD_NAME,
        commit_message=commit_message or "Upload MultimodalMultitaskPipeline",
        token=token,
        create_pr=create_pr,
    )


def copy_records(source: str | None, folder: str | Path) -> None:
    """Copy the card, the records and the pictures of `source`, where the saved weights in `folder` are those of it."""
    if source is None:
        return
    source, folder = Path(source), Path(folder)
    weights = [path.relative_to(folder) for path in folder.glob("*/diffusion_pytorch_model*")]
    if source.resolve() == folder.resolve() or not all((source / path).is_file() for path in weights):
        return
    if not all(filecmp.cmp(source / path, folder / path, shallow=False) for path in weights):
        logger.warning(f"The weights are no longer those of {source}: its records are left out of the card.")
        return
    for name in (CARD_NAME, *RECORDS):
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copy2(source / name, folder)
    if (source / "samples").is_dir():
        shutil.copytree(source / "samples", folder / "samples", dirs_exist_ok=True)


def _renew_card(folder: Path, repo_id: str, token: str | None) -> bool:
    """Write the card, if it is not its owner's; returns whether it is to be uploaded."""
    from .model_card import STANDALONE_BRANCH, is_generated, write_card

    own = (folder / CARD_NAME).read_text(encoding="utf-8") if (folder / CARD_NAME).exists() else ""
    theirs = _read_remote_card(repo_id, token)
    if own and not is_generated(own):
        return True
    if theirs and not (is_generated(theirs) and any((folder / name).exists() for name in RECORDS)):
        reason = "no record to renew it by" if is_generated(theirs) else "it was not made by mmdiff_pipelines"
        logger.warning(f"The {CARD_NAME} of {repo_id} stays as it is: {reason}.")
        return False
    write_card(folder, repo_id, standalone=f'revision="{STANDALONE_BRANCH}"' in theirs + own)
    return True


def _read_remote_card(repo_id: str, token: str | None) -> str:
    """The card of a repo, or "" if it has none."""
    try:
        return Path(hf_hub_download(repo_id, CARD_NAME, token=token)).read_text(encoding="utf-8")
    except RemoteEntryNotFoundError:
        return ""
