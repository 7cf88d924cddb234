"""Plugin libraries for TensorRT, compiled here: one maker of layers, which makes none."""

import shutil
import subprocess
from pathlib import Path

import pytest

_OFFERS = """
typedef struct { const char* kind; int major; int minor; } Info;
static int language(void* self) { (void)self; return 0; }
static Info info(void* self) { (void)self; return (Info){"PLUGIN CREATOR_V3ONE", 1, 0}; }
static void destroy(void* self) { (void)self; }
static void* nothing(void* self) { (void)self; return 0; }
static const char* name(void* self) { (void)self; return "DeployTestLayer"; }
static const char* version(void* self) { (void)self; return "1"; }
static const char* space(void* self) { (void)self; return ""; }
static void* const methods[] = {
  (void*)language, (void*)info, (void*)destroy, (void*)destroy,
  (void*)nothing, (void*)nothing, (void*)name, (void*)version, (void*)space,
};
static struct { void* const* methods; } creator = {methods};
static void* const creators[] = {&creator};
void setLoggerFinder(void* finder) { (void)finder; }
void* const* getCreators(int* count) { *count = 1; return creators; }
"""
"""The object that makes layers, with the methods that TensorRT calls, in their order in C++."""
_TELLS = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void tell(void) {
  const char* path = getenv("DEPLOY_TEST_LOADED");
  FILE* file = path ? fopen(path, "a") : 0;
  if (file) { fputs("x", file); fclose(file); }
}
"""


def compile_library(path: Path, *, offers: bool = True, note: str = "") -> Path:
    """A library at `path`; whoever loads it adds a letter to the file $DEPLOY_TEST_LOADED.

    Args:
        path: of the library.
        offers: it has what TensorRT looks for.
        note: makes its bytes other ones.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    source = path.with_suffix(".c")
    source.write_text(f'{_TELLS}{_OFFERS if offers else ""}const char note[] = "{note}";\n')
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True, timeout=240)
    source.unlink()
    return path
