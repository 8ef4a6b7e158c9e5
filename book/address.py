"""Where the book is published: repository and pages, known when pages are built.

`GITHUB_REPOSITORY` (GitHub Actions sets it) says so, or else the public origin of the
clone, or else `_config.yml`.
"""

import os
import re
import subprocess
from pathlib import Path

import yaml

HOST = "https://github.com/"


def configured(root: Path) -> str:
    """The repository in `_config.yml`, as notebooks are stamped with it."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"].rstrip("/")


def normal(remote: str) -> str | None:
    """https://github.com/owner/name of a remote's address; None for another host.

    A name or a token in the address is left out.
    """
    way = r"(?:https?://|ssh://|git://)?(?:[^@/]*@)?github\.com(?::\d+/|[:/])"
    found = re.fullmatch(rf"{way}([\w.-]+/[\w.-]+?)(?:\.git)?/?", remote.strip())
    return HOST + found[1] if found else None


def origin(root: Path) -> str | None:
    """The origin of the clone that `root` is the top of, if it is on GitHub."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return None
    return normal(found.stdout) if found.returncode == 0 else None


def repository(root: Path, environment=os.environ) -> str:
    """https://github.com/owner/name, from the first of the three that says it."""
    named = environment.get("GITHUB_REPOSITORY")
    return (HOST + named if named else None) or origin(root) or configured(root)


def pages(repository: str) -> str:
    """Where GitHub publishes a repository's pages; the address ends with a slash."""
    owner, name = repository.removeprefix(HOST).split("/")
    site = f"https://{owner.lower()}.github.io/"
    return site if name.lower() == f"{owner.lower()}.github.io" else f"{site}{name}/"
