"""The compiled module (csrc/ops/module.cpp)."""

NEWTON_STATUS: dict[str, int]
NEWTON_DAMPING_MODE: dict[str, int]
NEWTON_FIT_COLUMNS: tuple[str, ...]

def compiled_with_cuda() -> bool: ...
def cpu_capability() -> str: ...
def check_simd_environment() -> None: ...
def set_cpu_capability(name: str) -> None: ...
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
