"""The compiled module (csrc/ops/module.cpp)."""

def compiled_with_cuda() -> bool: ...
def cpu_capability() -> str: ...
def limit_cpu_capability(level: int) -> None: ...
def lag_state_size(
    input_size: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    bias: bool,
    transposed: bool,
    output_padding: list[int],
) -> int: ...
