"""Fixtures that several test files share."""

import torch

torch.set_num_threads(1)  # everything here is tiny: threads would only wait for each other
