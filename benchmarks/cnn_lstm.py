"""The neural network that conversion and optimising are measured with: a convolution and two LSTM layers over 60 × 110 factors.

It needs torch. Trained for a moment on made-up rows, it decides by what is in a row: with the random weights of a new network
one class wins everywhere, and every conversion of it would agree.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

N_TIMESTEPS, N_FACTORS, N_CLASSES = 60, 110, 3
INPUT_SHAPE = (N_TIMESTEPS, N_FACTORS)
CHANNELS, HIDDEN = 128, 256
N_STEPS, BATCH = 40, 64

Floats = npt.NDArray[np.float32]


class CnnLstm(nn.Module):
    """964,739 weights; gives three logits a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(N_FACTORS, CHANNELS, kernel_size=3, padding=1)
        self.pool = nn.MaxPool1d(2)
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, N_CLASSES)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Shapes: n_rows × 60 × 110 gives n_rows × 3."""
        found = self.pool(torch.relu(self.conv(features.transpose(1, 2)))).transpose(1, 2)
        return self.head(self.lstm(found)[0][:, -1])


def drifting_rows(n_rows: int, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Noise in which some factors drift, and what follows from the drift: 0 down, 1 nothing, 2 up, each about a third."""
    rng = np.random.default_rng(seed)
    drift = rng.normal(size=(n_rows, 1, 1))
    ramp = np.linspace(0, 1, N_TIMESTEPS)[:, None] * np.linspace(1, -0.5, N_FACTORS)[None, :]
    rows = rng.normal(size=(n_rows, *INPUT_SHAPE)) + drift * ramp
    labels = np.digitize(drift[:, 0, 0], (-0.43, 0.43))  # the terciles of a normal distribution
    return rows.astype(np.float32), labels


def trained_cnn_lstm(n_steps: int = N_STEPS, seed: int = 0) -> CnnLstm:
    """The network after some seconds of training on one thread, ready to predict; with no steps, a new one."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = CnnLstm()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(n_steps):
        rows, labels = drifting_rows(BATCH, seed + 1 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(rows)), torch.from_numpy(labels)).backward()
        optimizer.step()
    return model.eval()
