// Every op and its schema, one m.def a line: the table of contents. Implementations are in the file of the op's name.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(spectral_ext, m) {}
