"""bitsandbytes: 4-bit and 8-bit weights, and optimizers with 8-bit or paged state, as they run on the target GPU.

Nothing here imports bitsandbytes unless the job has: that takes seconds.
"""

from willfit._trace.bitsandbytes.paged import paged_tensor
from willfit._trace.bitsandbytes.runtime import OLDEST, bitsandbytes_runtime, too_old

__all__ = ["OLDEST", "bitsandbytes_runtime", "paged_tensor", "too_old"]
