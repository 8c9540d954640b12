"""An institution's data: readers, splits and the interface they share."""

from client.data.dataset import Dataset, LoadedSample, Sample
from client.data.open import open_dataset

__all__ = ["Dataset", "LoadedSample", "Sample", "open_dataset"]
