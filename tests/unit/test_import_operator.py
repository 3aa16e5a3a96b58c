"""The folder ``operator/`` must not hide the standard library's module of that name."""

import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_operator_is_the_standard_library_s() -> None:
    """Also where a test or script has the repository first on its path."""
    code = "import operator, finetune_api, finetune_operator; print(operator.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'operator')!r}]; {code}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == Path(sysconfig.get_path("stdlib"))


def test_operator_folder_is_no_package() -> None:
    assert not (REPOSITORY / "operator" / "__init__.py").exists()
    assert not (REPOSITORY / "trainer_image" / "__init__.py").exists()
