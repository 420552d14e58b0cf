"""Arrays with their dtype and shape, as annotations: ``boxes: Float32[Floats, "n 4"]``.

To a type checker these are plain NumPy arrays. At runtime nothing evaluates them, and the product needs no jaxtyping.
The tests import jaxtyping first; then these names are its types, and each call of the NumPy core is checked.

The same letter stands for the same number in all arguments and the result of a call. A shape of one letter begins with
a space, ``" n"``, or a linter would take it for a name.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array", "Bool", "Bools", "Float", "Float32", "Floats", "Int64", "Integer", "Ints", "Pixels", "Shaped", "UInt8",
]  # fmt: skip

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]

if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Float32
    from typing import Annotated as Int64
    from typing import Annotated as Integer
    from typing import Annotated as Shaped
    from typing import Annotated as UInt8
elif "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8
    from jaxtyping import Int as Integer
else:

    class _Unchecked:
        """Makes aliases such as ``Boxes = Float32[Floats, "n 4"]`` harmless."""

        def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
            return array_and_shape[0]

    Bool = Float = Float32 = Int64 = Integer = Shaped = UInt8 = _Unchecked
