"""Rebuilds `van_classification_tensorflow/assets/digits.npz` from scikit-learn's copy.

    pip install scikit-learn && python scripts/make_digits.py

UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0:
1,797 images of 8 x 8 pixels, 0 to 16.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TARGET = Path(__file__).parents[1] / "van_classification_tensorflow" / "assets" / "digits.npz"

if __name__ == "__main__":
    digits = load_digits()
    np.savez_compressed(
        TARGET, images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8)
    )
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
