"""What the Hub or ModelScope lists of a model: its files with their sizes and hashes."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from longcat._core import Error

_TIMEOUT = 30  # [s]
_HUB = "https://huggingface.co"
_MODELSCOPE = "https://modelscope.cn"
_HASH = re.compile(r"[0-9A-Za-z]+")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model.

    Args:
        name: path in the model's folder.
        size: [bytes]
        digest: SHA-256, or with `is_git` the SHA-1 of the git blob; "": not known.
    """

    name: str
    size: int
    url: str
    digest: str
    is_git: bool = False


@dataclass(frozen=True)
class Listing:
    """A model at one revision.

    Args:
        revision: the commit.
        headers: for requests to the source's own host.
    """

    name: str
    endpoint: str
    revision: str
    files: tuple[RemoteFile, ...]
    headers: dict[str, str]


def hub_listing(name: str, revision: str) -> Listing:
    """Asks the Hub, at HF_ENDPOINT if that is set, with the token of HF_TOKEN or of `hf auth login`.

    Raises:
        longcat.Error: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = _endpoint(os.environ.get("HF_ENDPOINT"), _HUB)
    _require_online(endpoint)
    token = get_token()
    try:
        info = HfApi(endpoint=endpoint, token=token).model_info(
            name, revision=revision, files_metadata=True, timeout=_TIMEOUT
        )
    except GatedRepoError as error:
        code = _status(error)
        raise Error(
            f"[pull] {endpoint} refuses {name} ({code}): it is open to accepted users only. Ask for access at "
            f"{endpoint}/{name}, then run `hf auth login` or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise Error(f"[pull] {name} has no revision {revision}; expected a branch, tag or commit of it.") from None
    except RepositoryNotFoundError as error:
        raise _refused(_status(error), name, endpoint, "HF_TOKEN") from None
    except HFValidationError:
        raise Error(f'[pull] {name} is no name of a model; expected "org/name".') from None
    except HfHubHTTPError as error:
        raise _refused(_status(error), name, endpoint, "HF_TOKEN") from None
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise _unreachable(endpoint, error) from None
    commit = _hash(info.sha) if info.sha else revision
    files = []
    for file in info.siblings or []:
        digest = _hash((file.lfs.sha256 if file.lfs is not None else file.blob_id) or "")
        url = f"{endpoint}/{name}/resolve/{quote(commit, safe='')}/{quote(file.rfilename)}"
        files.append(RemoteFile(_inside(file.rfilename), file.size or 0, url, digest, is_git=file.lfs is None))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing(name, endpoint, commit, tuple(files), headers)


def modelscope_listing(name: str, revision: str) -> Listing:
    """Asks ModelScope, at MODELSCOPE_ENDPOINT or MODELSCOPE_DOMAIN if set, with the token of MODELSCOPE_API_TOKEN.

    Raises:
        longcat.Error: ModelScope cannot be reached, or refuses.
    """
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
    endpoint = _endpoint(given, _MODELSCOPE)
    _require_online(endpoint)
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    api = f"{endpoint}/api/v1/models/{name}/repo"
    try:
        request = urllib.request.Request(f"{api}/files?Revision={quote(revision)}&Recursive=true", headers=headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            listed = json.load(answer)["Data"]["Files"]
        files = [_modelscope_file(file, api, revision) for file in listed if file.get("Type") != "tree"]
    except urllib.error.HTTPError as error:
        raise _refused(error.code, name, endpoint, "MODELSCOPE_API_TOKEN") from None
    except (KeyError, TypeError, ValueError) as error:
        raise Error(f"[pull] {endpoint} lists no files of {name}: {error!r}; expected Data.Files in JSON.") from None
    except OSError as error:
        raise _unreachable(endpoint, error) from None
    return Listing(name, endpoint, revision, tuple(files), headers)


def _modelscope_file(file: dict[str, Any], api: str, revision: str) -> RemoteFile:
    path = _inside(str(file["Path"]))
    url = f"{api}?Revision={quote(revision)}&FilePath={quote(path, safe='')}"
    return RemoteFile(path, int(file["Size"]), url, str(file.get("Sha256") or ""))


def _endpoint(given: str | None, default: str) -> str:
    endpoint = (given or default).rstrip("/")
    return endpoint if "://" in endpoint else f"https://{endpoint}"


def _require_online(endpoint: str) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Error(f"[pull] {name} is set, so {endpoint} is not asked. Unset it to download.")


def _inside(name: str) -> str:
    """Returns the path of a file, if it stays in the folder.

    Raises:
        longcat.Error: it does not.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise Error(f"[pull] the source lists a file {name!r}; expected a path inside the model's folder.")
    return str(path)


def _hash(text: str) -> str:
    """Returns the hash of a commit or a file, or "". In the cache it is the name of a folder or a file.

    Raises:
        longcat.Error: it would be a path.
    """
    if text and not _HASH.fullmatch(text):
        raise Error(f"[pull] the source lists a hash {text!r}; expected letters and digits.")
    return text


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _refused(status: int, name: str, endpoint: str, token: str) -> Error:
    if status in (401, 404):
        return Error(f"[pull] {endpoint} has no {name}, or it is private ({status}). Check the name, or set {token}.")
    if status == 403:
        return Error(f"[pull] {endpoint} refuses {name} (403). Ask for access to it, and set {token}.")
    if status == 429:
        return Error(f"[pull] {endpoint} takes no more requests from here now (429). Try again later, or set {token}.")
    return Error(f"[pull] {endpoint} answers {status} for {name}; expected 200. Try again later.")


def _unreachable(endpoint: str, error: Exception) -> Error:
    cause = getattr(error, "reason", None) or error
    reason = str(getattr(cause, "strerror", None) or cause).partition("\n")[0] or type(error).__name__
    return Error(
        f"[pull] {endpoint} cannot be reached: {reason}. Check the network; HF_ENDPOINT names a mirror, and "
        "--from modelscope another source."
    )
