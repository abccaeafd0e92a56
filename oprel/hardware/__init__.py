"""What this machine has, as plain data: cores, RAM and GPUs as far as this process may use them."""

from oprel.hardware.detect import detect_hardware, with_free_memory

__all__ = ["detect_hardware", "with_free_memory"]
