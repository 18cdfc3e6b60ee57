"""Let SGLang's own engine run on a machine with nothing but a CPU, to test against it. Never for serving.

SGLang's wheel expects kernels (`sgl_kernel`) that are published for accelerators only, and a torchvision built for the
same. On its way through a Llama in plain torch it imports both and calls neither. So, in the environment of the Python
that runs this script:

- a module ``sgl_kernel`` is written, every function of which fails when it is called; importing it also lets torch
  overlook a wish for pinned memory, which there is none of without an accelerator, and which adapters ask for;
- torchvision's ``__init__`` first defines the two operators that its compiled half would bring, because child processes
  import it, too.

Running it again changes nothing. An environment that has the real ``sgl_kernel`` is left as it is.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

KERNELS = '''\
"""A stand-in for tests on CPUs, written by fastchat-backend-sglang's ``stand_ins.py``."""

import torch

__version__ = "0.0.0"


def _overlooking(make):
    def made(*args, pin_memory=False, **kwargs):
        return make(*args, **kwargs)

    return made


for _name in ("empty", "tensor", "zeros"):
    setattr(torch, _name, _overlooking(getattr(torch, _name)))
torch.Tensor.pin_memory = lambda tensor, device=None: tensor


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} is not there: this is a stand-in for tests")

    missing.__name__ = name
    return missing
'''

OPERATORS = """\
# Written by fastchat-backend-sglang's stand_ins.py, for tests on CPUs.
import torch as _torch

_operators = _torch.library.Library("torchvision", "DEF")
_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
# End of what stand_ins.py wrote.
"""


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    if (packages / "sgl_kernel").is_dir():
        return
    (packages / "sgl_kernel.py").write_text(KERNELS)
    vision = packages / "torchvision" / "__init__.py"
    source = vision.read_text()
    if not source.startswith(OPERATORS):
        vision.write_text(OPERATORS + source)


if __name__ == "__main__":
    main()
