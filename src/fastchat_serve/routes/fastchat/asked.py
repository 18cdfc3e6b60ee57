"""The model that a FastChat process asks for: whatever is served here looks to it like one worker."""

from __future__ import annotations

from fastchat_serve.errors import InvalidRequest
from fastchat_serve.fastchat.served import models_served, workers_of
from fastchat_serve.routes.openai.service import Service
from fastchat_serve.worker.base import Worker

__all__ = ["awake", "model_of"]


def model_of(service: Service, asked: str | None) -> str:
    """The model called `asked`; workers that have one model only are asked without its name.

    Raises:
        InvalidRequest: There is no name, and not just one model.
    """
    models = models_served(service.dispatcher.registry)
    if asked is None and len(models) != 1:
        raise InvalidRequest("Say which model is meant: 'model' is missing.", param="model")
    return models[0] if asked is None else asked


async def awake(service: Service, model: str) -> list[Worker]:
    """The workers that take requests for `model`, once there is one. Raises as `Waking.wake` and `workers_of` do."""
    await service.waking.wake(model)
    return workers_of(service.dispatcher.registry, model)
