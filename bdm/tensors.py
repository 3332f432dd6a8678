import numpy as np
import torch
from torch import Tensor


def tensor_of(array: np.ndarray) -> Tensor:
    """Copy an array into memory that torch has aligned: elsewhere the last digits of products depend on the address."""
    return torch.tensor(array)
