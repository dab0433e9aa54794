"""Files from the Hugging Face hub or its cache, and the sentence for each reason why there are none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined] # HTTPError is of the client that it uses
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from erase.config import LoadConfig

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def download_model(model: str, config: LoadConfig) -> Path:
    """The snapshot folder of a hub id: configs, tokenizers, and weights as safetensors of the asked variant.

    Raises ValueError that says why there is none.
    """
    from huggingface_hub import snapshot_download

    weights = f"*.{config.variant}.safetensors" if config.variant else "*.safetensors"
    patterns = [*_texts(PARTS), *(f"{part}/{weights}" for part in PARTS)]
    ignored = [] if config.variant else ["*.fp16.safetensors", "*.non_ema.safetensors"]
    revision = f" --revision {config.revision}" if config.revision else ""
    here = f"there is no folder or file {model} here; as a hub id it is not in the local cache and could not be downloaded"
    elsewhere = (
        f"if it is one, run `hf download {model}{revision} --local-dir {model.split('/')[1]}` on a machine with network "
        "access, copy that folder here and give it instead"
    )
    try:
        with told(model, here, elsewhere, config.revision):
            folder = Path(
                snapshot_download(
                    model,
                    revision=config.revision,
                    cache_dir=config.cache_dir,
                    allow_patterns=patterns,
                    ignore_patterns=ignored,
                )
            )
    except HFValidationError as error:
        raise ValueError(f"there is no model {model}: it is no file or folder here, and no hub id has such a name.") from error
    if (folder / "unet").is_dir() and not any((folder / "unet").glob(weights)):
        which = f"of the variant {config.variant!r}" if config.variant else "without a variant"
        other = "leave out --variant, or give another" if config.variant else "give --variant fp16, if it has that one"
        raise ValueError(f"{model} has no .safetensors weights {which}, as far as is known here: {other}.")
    return folder


def download_configs(names: Sequence[str], config: LoadConfig, asker: str, parts: Sequence[str] = ()) -> Path:
    """A snapshot folder with these parts' configs and tokenizers of a pipeline, or with all of them.

    Of several repositories whose files are the same, the first that lies in the local cache, else the first from the hub.
    Raises ValueError that says why there is none, and that `asker` needs it.
    """
    from huggingface_hub import snapshot_download

    patterns, needed = _texts(parts or PARTS), parts or ("model_index.json", "unet", "tokenizer")
    for name in names:
        try:
            folder = snapshot_download(name, cache_dir=config.cache_dir, allow_patterns=patterns, local_files_only=True)
        except (OSError, ValueError):
            continue
        if all((Path(folder) / part).exists() for part in needed):
            return Path(folder)
    what = " and ".join(parts) if parts else "configs and tokenizer"
    here = f"{asker} needs the {what} of {names[0]}, which is not in the local cache and could not be downloaded"
    elsewhere = (
        "give the folder of a model of its kind, or that model's hub id, with --model-config (of a run --set load.config=...); "
        f"on a machine with network access `hf download {names[0]} --exclude '*.safetensors' '*.bin' '*.ckpt'` fetches what is "
        "needed"
    )
    with told(names[0], here, elsewhere):
        return Path(snapshot_download(names[0], cache_dir=config.cache_dir, allow_patterns=patterns))


def download_beside(name: str, repo: str, config: LoadConfig) -> Path | None:
    """A file that a model is loaded without, from the local cache, else from the hub; None if it cannot be had."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    if cached := try_to_load_from_cache(repo, name, config.cache_dir, config.revision):
        return Path(cached) if isinstance(cached, str) else None  # else it is known that there is none
    try:
        HfApi().model_info(repo, revision=config.revision, timeout=5)  # fails at once where a download tries for a minute
        return Path(hf_hub_download(repo, name, revision=config.revision, cache_dir=config.cache_dir))
    except (OSError, ValueError, HTTPError, EntryNotFoundError):
        return None


def _texts(parts: Sequence[str]) -> list[str]:
    """Patterns of the parts' configs and tokenizer files."""
    return ["model_index.json", *(f"{part}/{name}" for part in parts for name in ("*.json", "*.txt"))]


@contextmanager
def told(repo: str, here: str, elsewhere: str, revision: str | None = None) -> Iterator[None]:
    """What keeps the block from downloading becomes a ValueError of one sentence; other OSErrors, as of a full disk, stay.

    `here` says what is missing, `elsewhere` what to do without a network. A dataset's `repo` begins with datasets/.
    """
    try:
        yield
    except HFValidationError:
        raise
    except (OSError, HTTPError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise
        cause = (error.__cause__ or error) if isinstance(error, LocalEntryNotFoundError) else error
        part = "what is there is incomplete; " if isinstance(error, IncompleteSnapshotError) else ""
        sentence = _about(cause, repo, revision) or f"{here} ({part}{_in_words(cause)}): {elsewhere}."
        raise ValueError(sentence) from error


def _about(cause: BaseException, repo: str, revision: str | None) -> str:
    """The sentence for what the hub answered about a repository; empty for all else."""
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(cause, GatedRepoError):
        return f"{repo} is gated: accept its license at {page}, and log in with `hf auth login`."
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"there is no folder or file {repo} here, and the hub has no such repository, or a private one: check the name, "
            "or log in with `hf auth login`."
        )
    if isinstance(cause, HfHubHTTPError) and getattr(cause.response, "status_code", 0) == 401:
        return f"the hub refuses the access token that was used for {repo}: log in anew with `hf auth login`."
    if isinstance(cause, RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'!r}: {page} lists its branches and tags."
    return f"{repo} has been disabled on the hub: give another." if isinstance(cause, DisabledRepoError) else ""


def _in_words(cause: BaseException) -> str:
    """Why the hub gave nothing, where it is not about the repository."""
    name = type(cause).__name__
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(cause, HfHubHTTPError):
        return f"the hub's answer has the status {getattr(cause.response, 'status_code', 'unknown')}"
    return f"{name}: the proxy, see HTTPS_PROXY, refuses" if name == "ProxyError" else f"{name}: no connection to the hub"
