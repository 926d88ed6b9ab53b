"""The native libraries, built when there is a C++ compiler; pyproject.toml says everything else.

The timing engine is one shared library with a plain C interface, the same kernel compiled once per
instruction set; exact coding is another one, of a single source. They need neither Python's headers nor
another package, and an installation without them is complete: numpy gives the same figures and codes.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("backend_sim/simulator/native")
NAME = "escc.backend_sim.simulator.native.kernel"

COMMON = ["-O3", "-g0", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Wno-psabi"]
AVX2 = ["-mavx2", "-mbmi", "-mbmi2", "-mpopcnt", "-mlzcnt"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
PORTABLE: dict[str, list[str]] = {"api.cpp": [], "kernel_baseline.cpp": []}
SOURCES = PORTABLE | ({"kernel_avx2.cpp": AVX2, "kernel_avx512.cpp": AVX512} if X86 else {})
CODING = Path("passes/math/native")
CODING_NAME = "escc.passes.math.native.coding"
# scores are compared with numpy's, which rounds products
LIBRARIES = {
    NAME: (FOLDER, SOURCES),
    CODING_NAME: (CODING, {"coding.cpp": ["-ffp-contract=off"]}),
}


class BuildKernel(build_ext):
    """Compiles every source with the flags of its instruction set."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library lies in the package: it belongs to no version of Python, so no tag."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; an error only leaves the library out, for the extension is optional."""
        compiler = self.compiler
        objects: list[str] = []
        folder, sources = LIBRARIES[ext.name]
        for name, flags in sources.items():
            objects += compiler.compile(
                [str(folder / name)],
                output_dir=self.build_temp,
                macros=[("ESCC_X86", "1")] if X86 else [],
                extra_postargs=[*COMMON, *flags],
                depends=ext.depends,
            )
        # nothing of the C++ library is used, so it is not linked either
        compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), build_temp=self.build_temp)


setup(
    ext_modules=[
        Extension(
            name,
            sources=[str(folder / source) for source in sources],
            depends=[str(path) for path in sorted(folder.glob("*.h"))],
            optional=True,
        )
        for name, (folder, sources) in LIBRARIES.items()
    ],
    cmdclass={"build_ext": BuildKernel},
)
