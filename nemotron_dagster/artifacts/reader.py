"""Read an artifact without anything installed: ``python reader.py DIR``. Copy this one file wherever it is needed.

Standard library only. It checks that the manifest is whole and that every file is there with its size, and prints what
the artifact is. Digests of files are xxh3-64, which the standard library lacks: only `nemotron artifacts verify` checks
them. Exit code 0: whole; 8: not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from typing import Any

MANIFEST = "artifact.json"
SCHEMA = 1


def load(directory: str) -> dict[str, Any]:
    """The manifest in ``directory``, with the sha256 of its bytes as ``manifest_sha256``.

    Raises:
        ValueError: there is none, or it is broken or newer than this reads.
    """
    file = os.path.join(directory, MANIFEST)
    try:
        with open(file, "rb") as f:
            raw = f.read()
        manifest = json.loads(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{directory}: is no published artifact (no {MANIFEST})") from None
    except (OSError, ValueError) as e:
        raise ValueError(f"{file}: is not a manifest ({e})") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{file}: is not a manifest (no table of files)")
    if int(manifest.get("schema", SCHEMA)) > SCHEMA:
        raise ValueError(f"{file}: has schema {manifest['schema']}; this reads up to {SCHEMA}")
    return {**manifest, "manifest_sha256": hashlib.sha256(raw).hexdigest()}


def problems(directory: str, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the files that the manifest names; empty for a whole artifact."""
    found = []
    table = manifest["files"]
    if hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest() != manifest.get("content"):
        found.append(f"{MANIFEST}: its table of files was changed after publishing")
    base = os.path.join(directory, manifest.get("data", ""))
    for name, (size, digest) in table.items():
        path = os.path.join(base, name)
        if digest.startswith("-> "):
            if not os.path.islink(path) or os.readlink(path) != digest[3:]:
                found.append(f"{name}: is not the link {digest}")
        elif not os.path.isfile(path):
            found.append(f"{name}: is missing")
        elif os.path.getsize(path) != size:
            found.append(f"{name}: has {os.path.getsize(path)} bytes, not {size}")
    try:
        with open(os.path.join(directory, os.pardir, "latest.json"), encoding="utf-8") as f:
            pointer = json.load(f)
        named = pointer.get("manifest")
        current = pointer.get("uri") == os.path.basename(os.path.abspath(directory))
        if named and current and named != manifest["manifest_sha256"]:
            found.append(f"{MANIFEST}: is not the one that latest.json names; it was changed after publishing")
    except (OSError, ValueError, AttributeError):
        pass
    return found


def text(manifest: dict[str, Any]) -> str:
    """What a person wants to know first."""
    asset = "/".join(manifest.get("asset", []))
    lines = [
        f"{asset}  {manifest.get('type')}  version {manifest.get('key')}",
        f"  created    {manifest.get('created')} by {manifest.get('producer')} -c {manifest.get('config')}",
        f"  files      {len(manifest['files'])}, {manifest.get('bytes', 0):,} bytes, below "
        f"{os.path.join(manifest.get('data', ''), manifest.get('path', '.'))}",
        f"  content    {manifest.get('content')}",
        f"  manifest   {manifest['manifest_sha256']}",
    ]
    for name in ("partition", "tokenizer", "chat_template", "sequence_length"):
        if manifest.get(name):
            lines.append(f"  {name.replace('_', ' '):<10} {manifest[name]}")
    lines += [f"  {name:<10} {value:,}" for name, value in manifest.get("counts", {}).items() if name != "files"]
    for entry in manifest.get("inputs", []):
        named = "/".join(entry.get("asset", [])) or "given by the user"
        lines.append(f"  input      {entry.get('port')}: {named}, {entry.get('uri')}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the artifact in a directory, and what is wrong with it."""
    parser = argparse.ArgumentParser(description="Show an artifact and check that its files are whole.")
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("--json", action="store_true", help="print the manifest and the problems as JSON")
    given = parser.parse_args(arguments)
    try:
        manifest = load(given.directory)
        wrong = problems(given.directory, manifest)
    except (ValueError, TypeError, KeyError) as e:
        manifest, wrong = {}, [str(e)]
    if given.json:
        print(json.dumps({"problems": wrong, "manifest": manifest}, indent=2))
    else:
        print("\n".join(([text(manifest)] if manifest else []) + [f"PROBLEM: {p}" for p in wrong]))
    return 8 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
