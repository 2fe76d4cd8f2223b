"""Writes the licences of all Rust crates inside the binary: third_party.py MANIFEST OUTPUT.

Names, versions and licences are cargo's own; the texts are those of the crates. Where a crate ships none, its licence's usual
text is given with the crate's authors.
"""

import collections
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXT_NAMES = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|unlicense|ofl|ufl)|licen[cs]e[^/]*\.(txt|md)$")
RULE = "=" * 100


def packages(manifest):
    """The packages that are linked into the program on Linux, by name and version."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.check_output([*command, "--manifest-path", manifest]))
    by_id = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    linked, todo = set(), [metadata["resolve"]["root"]]
    while todo:
        node = todo.pop()
        if node not in linked:
            linked.add(node)
            # kind None is a normal dependency; build and dev dependencies are not linked.
            todo += [dep["pkg"] for dep in nodes[node]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    found = [by_id[node] for node in linked]
    # Packages without a registry are this project's own.
    return sorted((package for package in found if package["source"]), key=lambda package: (package["name"], package["version"]))


def texts(package):
    """Licence texts that the package ships, by path."""
    folder = os.path.dirname(package["manifest_path"])
    named = [os.path.join(folder, package["license_file"])] if package["license_file"] else []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("target", "tests", "benches", "examples"))
        for name in sorted(files):
            path = os.path.join(parent, name)
            if (TEXT_NAMES.search(name) or "license" in parent[len(folder):].lower()) and not name.endswith((".rs", ".ttf")):
                named.append(path)
    result = {}
    for path in named:
        with open(path, encoding="utf-8", errors="replace") as file:
            result[os.path.relpath(path, folder)] = file.read().strip()
    return result


def usual_text(package):
    """The licence's usual text, for a package that ships none."""
    licence = package["license"] or ""
    holders = ", ".join(re.sub(r"\s*<.*?>", "", author) for author in package["authors"]) or f"The {package['name']} authors"
    with open(os.path.join(ROOT, "LICENSE-MIT" if "MIT" in licence else "LICENSE-APACHE"), encoding="utf-8") as file:
        text = file.read().strip()
    if "MIT" not in licence and "Apache-2.0" not in licence:
        sys.exit(f"error: {package['name']} {package['version']} ships no licence text and is under {licence or 'no licence'}")
    return re.sub(r"Copyright \(c\) 2026 The lorabooth authors", f"Copyright (c) {holders}", text)


def main(manifest, output):
    found = packages(manifest)
    users = collections.OrderedDict()
    for package in found:
        shipped = texts(package) or {"": usual_text(package)}
        for text in shipped.values():
            users.setdefault(text, []).append(f"{package['name']} {package['version']}")
    with open(output, "w", encoding="utf-8") as file:
        file.write(f"The program contains these {len(found)} Rust crates; their licence texts follow below the list.\n\n")
        for package in found:
            licence = package["license"] or "see the text"
            file.write(f"{package['name']} {package['version']}: {licence}; {package['repository'] or 'no repository named'}\n")
        for text, names in users.items():
            file.write(f"\n{RULE}\n{', '.join(dict.fromkeys(names))}\n{RULE}\n\n{text}\n")
    print(f"licences of {len(found)} crates: {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
