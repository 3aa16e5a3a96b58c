"""``make demo`` as README promises it, and again."""

import os
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def demo(environment: dict[str, str]) -> tuple[str, float]:
    began = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout, time.monotonic() - began


def test_demo(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FINETUNE", "OMP", "HF_"))}
    environment |= {"DEMO_DIR": str(tmp_path / "demo")}
    out, seconds = demo(environment)
    print(out)
    before, after = map(float, re.search(r"validation loss\s+([\d.]+) before, ([\d.]+) after", out).groups())  # type: ignore[union-attr]
    assert after <= before / 2
    for line in ("tokens/s", "wall time", "peak memory", "adapter "):
        assert line in out
    assert out.count("  before  ") == out.count("  after   ") == 5
    print(f"make demo took {seconds:.0f} s")

    again, seconds_again = demo(environment)
    print(f"make demo again took {seconds_again:.0f} s")
    assert seconds_again < seconds / 3
    assert again.count("  after   ") == 5
