#!/usr/bin/env python3
"""check-dependencies.py [CARGO]: licences, bans and sources of all dependencies, by the rules of deny.toml.

What `cargo deny check licenses bans sources` does with those rules, without the minutes that building cargo-deny takes.
Fails on a rule that it does not know, so that deny.toml never promises more than is checked.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Keys of deny.toml that are applied here. Advisories are cargo-deny's alone.
KNOWN = {
    "graph": {"targets", "all-features"},
    "licenses": {"version", "allow", "exceptions"},
    "bans": {"multiple-versions", "wildcards", "allow-wildcard-paths", "skip", "deny"},
    "sources": {"unknown-registry", "unknown-git", "allow-registry"},
}
STRICT = [
    ("bans", "multiple-versions", "deny"),
    ("bans", "wildcards", "deny"),
    ("sources", "unknown-registry", "deny"),
    ("sources", "unknown-git", "deny"),
]


def satisfied(expression, allowed):
    """Whether an SPDX expression is met by the allowed licences alone. `/` is the old form of OR."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either():
        met = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            other = both()
            met = met or other
        return met

    def both():
        met = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            other = one()
            met = met and other
        return met

    def one():
        name = tokens.pop(0)
        if name == "(":
            met = either()
            tokens.pop(0)
            return met
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            name = f"{name} WITH {tokens.pop(0)}"
        return name in allowed

    met = either()
    if tokens:
        raise ValueError(f"unreadable licence expression: {expression}")
    return met


def check(rules, packages, nodes):
    """Yields one line for each violation."""
    for section, known in KNOWN.items():
        for key in rules[section].keys() - known:
            yield f"deny.toml: [{section}] {key} is not known to check-dependencies.py"
    for section, key, value in STRICT:
        if rules[section].get(key) != value:
            yield f"deny.toml: [{section}] {key} must be {value!r}"

    licenses, bans, sources = rules["licenses"], rules["bans"], rules["sources"]
    banned = {entry["crate"]: entry["reason"] for entry in bans["deny"]}
    versions = {}
    for package in packages:
        name, version = package["name"], package["version"]
        named = f"{name} {version}"
        versions.setdefault(name, []).append(version)

        allowed = set(licenses["allow"])
        for exception in licenses["exceptions"]:
            if exception["crate"] == name:
                allowed |= set(exception["allow"])
        if not package["license"]:
            yield f"licenses: {named} states none"
        elif not satisfied(package["license"], allowed):
            yield f"licenses: {named} has {package['license']}, which deny.toml does not allow"

        if name in banned:
            users = [n["id"].split("/")[-1] for n in nodes if package["id"] in n["dependencies"]]
            yield f"bans: {named}: {banned[name]}; used by {', '.join(users)}"

        if package["source"] is not None:
            if package["source"] not in {f"registry+{url}" for url in sources["allow-registry"]}:
                yield f"sources: {named} comes from {package['source']}"
        else:
            for dependency in package["dependencies"]:
                if dependency["req"] == "*" and "path" not in dependency:
                    yield f"bans: {named} takes any version of {dependency['name']}"

    for entry in bans["skip"]:
        name, version = entry["crate"].split("@")
        old = [v for v in versions.get(name, []) if v == version or v.startswith(f"{version}.")]
        if not old or len(versions[name]) == 1:
            yield f"deny.toml: [bans] skip: {entry['crate']} is not needed"
        else:
            versions[name].remove(old[0])
    for name, found in versions.items():
        if len(found) > 1:
            yield f"bans: {name} in {len(found)} versions: {', '.join(sorted(found))}"
    for entry in licenses["exceptions"]:
        if entry["crate"] not in versions:
            yield f"deny.toml: [licenses] exceptions: {entry['crate']} is not needed"


def main():
    cargo = sys.argv[1] if len(sys.argv) > 1 else "cargo"
    rules = tomllib.loads((ROOT / "deny.toml").read_text())
    command = [cargo, "metadata", "--locked", "--format-version=1", "--all-features"]
    command += [f"--filter-platform={target}" for target in rules["graph"]["targets"]]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    nodes = metadata["resolve"]["nodes"]
    used = {node["id"] for node in nodes}
    packages = [package for package in metadata["packages"] if package["id"] in used]
    violations = list(check(rules, packages, nodes))
    for line in violations:
        print(line)
    print(f"{len(packages)} packages, {len(violations)} violations of deny.toml")
    sys.exit(bool(violations))


main()
