"""An Oprel driver that makes embeddings with BERT models in GGUF files, in nothing but NumPy.

Importing this imports neither NumPy nor gguf: Oprel lists drivers, and asks them whether they can be used, long before
anything is loaded.
"""

from oprel_driver_numpy_bert.driver import NumpyBertDriver

__all__ = ["NumpyBertDriver"]
