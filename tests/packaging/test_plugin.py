"""A package from outside brings a pass: installed, found by its name and run like a built-in one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "cap_relu"

NETWORK = """
func.func @main(%x : tensor<2x2x3xf32>) -> tensor<2x2x3xf32> {
  %1 = nn.activation %x kind "relu" : (tensor<2x2x3xf32>) -> tensor<2x2x3xf32>
  %2 = nn.add %1, %x activation "relu" : (tensor<2x2x3xf32>, tensor<2x2x3xf32>) -> tensor<2x2x3xf32>
  %3 = nn.activation %2 kind "tanh" : (tensor<2x2x3xf32>) -> tensor<2x2x3xf32>
  func.return %3 : tensor<2x2x3xf32>
}
"""

RUN = """
import sys, escc
module = escc.Module.from_text(sys.stdin.read())
try:
    escc.run_pipeline(module, escc.parse_pipeline(sys.argv[1]), escc.PassContext())
except escc.EsccError as error:
    sys.exit(f"error: {error}")
print(module.to_text(locations=False))
"""

COMPILE = """
import sys, numpy, torch, escc
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU()).eval()
images = 100 * numpy.random.default_rng(1).standard_normal((4, 3, 6, 6), dtype=numpy.float32)
example = torch.from_numpy(images)
for passes in (sys.argv[1], sys.argv[1].replace("cap-relu,", "")):
    program = escc.compile(model, example=example, calibration=images, passes=passes)
    print(escc.simulate(program, images).outputs_float[0].max())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed in a folder of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    source.mkdir()
    # a copy: building leaves files behind
    for name in ("pyproject.toml", "cap_relu.py"):
        (source / name).write_bytes((EXAMPLE / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", folder / "site", source], check=True)
    return folder / "site"


def run(pipeline: str, site: Path | None, program: str = RUN) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-W", "error", "-c", program, pipeline]
    return subprocess.run(
        command, input=NETWORK, capture_output=True, text=True, env=environment, check=False
    )


def test_the_pass_runs_by_its_name(installed: Path) -> None:
    done = run("cap-relu", installed)
    assert done.returncode == 0, done.stderr
    assert "relu" not in done.stdout
    assert re.search(r'nn.activation .* kind "clamp" args \[0.0, 6.0\]', done.stdout)
    assert re.search(r'nn.add .* activation "clamp" activation_args \[0.0, 6.0\]', done.stdout)
    assert 'kind "tanh"' in done.stdout


def test_its_options_are_read_from_the_pipeline_text(installed: Path) -> None:
    done = run("cap-relu{high=2.5}", installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[0.0, 2.5]") == 2


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        ("cap-relu{high=-1}", "error: cap-relu: high must be positive, not -1.0"),
        ("cap-relu{high=x}", "error: cap-relu{high}: 'x' is not a float"),
        ("cap-relu{hihg=1}", "error: pass 'cap-relu' has no option 'hihg' (did you mean 'high'?)"),
        ("cap-rleu", "error: unknown pass 'cap-rleu' (did you mean 'cap-relu'?)"),
    ],
)
def test_its_errors_are_one_line(installed: Path, pipeline: str, said: str) -> None:
    done = run(pipeline, installed)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [said]


def test_without_the_package_there_is_no_such_pass() -> None:
    done = run("cap-relu", None)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown pass 'cap-relu'")


def test_the_pipeline_of_the_page_compiles_and_the_lid_holds(installed: Path) -> None:
    page = (ROOT / "docs" / "write-a-pass.md").read_text(encoding="utf-8")
    (pipeline,) = re.findall(r"-p '(fold-batch-norm,[^']*)'", page)
    done = run(pipeline, installed, COMPILE)
    assert done.returncode == 0, done.stderr
    capped, free = map(float, done.stdout.split())
    assert capped == pytest.approx(6.0, abs=6.0 / 255)
    assert free > 50
