"""Files of a Hugging Face repository: from the local cache, else downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openshape_jax.convert.error import ConversionError

TIMEOUT = 10  # seconds for the hub to say what a repository holds


def fetch(repo: str, candidates: Sequence[str]) -> Path:
    """The local path of the first of `candidates` that `repo` has; files of an index come with it.

    What the cache holds is used without asking the network.

    Raises:
      ConversionError: no network, no such repository, or none of the files in it; says where was looked,
        how to get the file elsewhere, and where to put it.
    """
    from huggingface_hub import HfApi, constants

    from openshape_jax.convert.files import shard_names

    cache = constants.HF_HUB_CACHE
    try:
        name = next((n for n in candidates if _cached(repo, n, cache)), None)
        if name is None:  # one short question first: a download would retry for half a minute
            there = [s.rfilename for s in HfApi().model_info(repo, timeout=TIMEOUT).siblings or []]
            name = next((n for n in candidates if n in there), None)
        if name is None:
            raise ConversionError(
                f"the repository {repo} on Hugging Face holds none of {', '.join(candidates)}. Download its "
                "checkpoint and give the file's path instead."
            )
        found = _get(repo, name, cache)
        if name.endswith(".index.json"):
            for shard in sorted(set(shard_names(found).values())):
                _get(repo, shard, cache)
    except ConversionError:
        raise
    except Exception as error:  # of httpx, the hub or the OS: the way out is the same for all
        raise ConversionError(_unreachable(repo, cache, candidates, error)) from error
    return found


def _cached(repo: str, name: str, cache: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, name, cache_dir=cache)
    return path if isinstance(path, str) else None


def _get(repo: str, name: str, cache: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(_cached(repo, name, cache) or hf_hub_download(repo, name, cache_dir=cache))


def _unreachable(repo: str, cache: str, candidates: Sequence[str], error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return (
        f"{repo} is no file or folder here and could not be had from Hugging Face ({type(error).__name__}: "
        f"{first}). Looked for {', '.join(candidates)} in the cache {cache}, then on the hub. On a machine "
        f"with network run 'hf download {repo} --local-dir {repo.partition('/')[2]}', copy that folder here "
        "and give its path instead of the name."
    )
