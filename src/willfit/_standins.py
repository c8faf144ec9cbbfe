"""What a copy of a job has in the place of things that it must not use."""

from __future__ import annotations

from typing import Any

from willfit._errors import JobError

# What these log goes to files and servers.
_LOGGERS = ("aim", "clearml", "comet_ml", "mlflow", "neptune", "swanlab", "tensorboardX", "wandb")


class NotDrawn:
    """Stands for an iterator of the user's that cannot be copied, so that the step cannot use it up."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __iter__(self) -> NotDrawn:
        return self

    def __next__(self) -> Any:
        raise JobError(
            f"the training step draws from {self._what}, which cannot be copied, so predicting would use up its items: "
            "draw the batch first, and pass it as batch"
        )


class Silent:
    """Stands for a logger of experiments: takes every call and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Silent()

    def __call__(self, *_: Any, **__: Any) -> Silent:
        return self

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def is_logger(module: str) -> bool:
    """Whether this is the name of a module that logs experiments."""
    return module.partition(".")[0] in _LOGGERS or module.startswith("torch.utils.tensorboard")
