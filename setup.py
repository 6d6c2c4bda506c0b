"""Builds the one compiled part, a short way for records of frames; all else is in pyproject.toml.

It is optional: without a C compiler the package installs all the same, and reads records in Python.
"""

import sysconfig

from setuptools import Extension, setup

_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no stable ABI yet
_FOLDER = "src/nextvlad/data/compiled"

setup(
    ext_modules=[
        Extension(
            "nextvlad.data._usual_records",
            sources=[f"{_FOLDER}/module.c"],
            depends=[f"{_FOLDER}/crc32c.h", f"{_FOLDER}/usual_video.h"],
            extra_compile_args=["-std=c11", "-O3", "-Wall", "-Wextra"],
            py_limited_api=not _FREE_THREADED,
            optional=True,
        )
    ],
    # One wheel for Python 3.11 and all that follow.
    options={} if _FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
