"""The pages' JavaScript, tested by node's own runner: tests/js."""

import subprocess

import vendor
from conftest import ROOT


def test_javascript():
    files = sorted(map(str, (ROOT / "tests" / "js").glob("*.test.mjs")))
    assert files
    command = [vendor.find("node"), "--test", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
