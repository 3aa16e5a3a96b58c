"""Writes everything that is generated; with --check it only compares, and fails on a difference."""

import argparse
import difflib
import sys

from tools import (
    generate_chart,
    generate_crd,
    generate_invalid,
    generate_matrix,
    generate_quickstart,
    generate_reference,
)

GENERATORS = (
    generate_crd,
    generate_invalid,
    generate_quickstart,
    generate_chart,
    generate_matrix,
    generate_reference,
)  # each may read what the ones before wrote


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs, and show how")
    check, differing = parser.parse_args().check, 0
    for generator in GENERATORS:
        for path, text in generator.generate().items():
            found = path.read_text(encoding="utf-8") if path.exists() else ""
            if found == text:
                continue
            differing += 1
            if check:
                sys.stdout.writelines(
                    difflib.unified_diff(found.splitlines(True), text.splitlines(True), str(path), "generated")
                )
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                print(f"wrote {path.name}")
    if check and differing:
        print(f"{differing} generated file(s) differ: run `make generate`", file=sys.stderr)
    return int(check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())
