"""S1, S2: fields and routes of other servers that make them call somebody. Here they mean nothing."""

from __future__ import annotations

from typing import Any

from tests.hostile.case import CANARY, Case, chat, complete, embed, get, post

__all__ = ["CASES"]

URL = f"http://{CANARY}/v1"

FIELDS: dict[str, Any] = {
    "api_base": URL,
    "base_url": URL,
    "api_key": "sk-other",
    "api_type": "azure",
    "api_version": "x",
    "organization": "x",
    "worker_addr": URL,
    "worker_address": URL,
    "worker_name": URL,
    "controller_address": URL,
    "bootstrap_host": CANARY,
    "bootstrap_port": 80,
    "bootstrap_room": 1,
    "kv_transfer_params": {"do_remote_prefill": True, "remote_host": CANARY, "remote_port": 1},
    "disaggregated_params": {"ctx_dp_rank": 0, "first_gen_tokens": [1]},
    "mm_processor_kwargs": {"url": URL},
    "extra_body": {"api_base": URL},
    "extra_headers": {"x": "y"},
    "headers": {"Host": CANARY},
    "proxy": URL,
    "proxies": {"http": URL},
    "callback": URL,
    "webhook": URL,
    "callbacks": [URL],
    "success_callback": [URL],
    "fallbacks": [{"model": URL}],
    "mock_response": "x",
    "user_config": {"model_list": [{"litellm_params": {"api_base": URL}}]},
    "vllm_xargs": {"url": URL},
    "lora_path": f"{URL}/adapter",
    "adapter_id": "../../etc",
    "metadata": {"url": URL},
    "prediction": {"type": "content", "content": URL},
    "store": True,
    "background": True,
    "mcp_servers": [{"url": URL}],
}

ROUTES = [
    "/register_worker",
    "/receive_heart_beat",
    "/list_models",
    "/get_worker_address",
    "/refresh_all_workers",
    "/worker_generate_stream",
    "/worker_get_status",
    "/model/new",
    "/config/update",
    "/key/generate",
    "/load_lora_adapter",
    "/v1/load_lora_adapter",
    "/collective_rpc",
    "/update_weights_from_disk",
    "/start_profile",
    "/sleep",
    "/reset_prefix_cache",
    "/api/pull",
    "/api/create",
    "/api/jobs",
    "/add_worker?url=" + URL,
    "/proxy/" + URL,
    "/file=/etc/passwd",
    "/v1/files",
    "/debug/pprof",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/schema/swagger",
    "/schema/openapi.json",
    "/console",
    "/admin",
    "/env",
    "/actuator/env",
    "/.git/config",
    "/.env",
    "/server-status",
]

CASES = {
    **{f"{name} in a chat": Case(200, chat(**{name: value})) for name, value in FIELDS.items()},
    **{f"{name} in a completion": Case(200, complete(**{name: value})) for name, value in list(FIELDS.items())[:14]},
    **{f"{name} in an embedding": Case(200, embed(**{name: value})) for name, value in list(FIELDS.items())[:14]},
    "a model that is an address": Case(404, chat(model=URL), "model"),
    "a model that is an address, to be looked up": Case(404, get(f"/v1/models/http://{CANARY}/")),
    **{f"POST {path}": Case(404, post(path, {"worker_name": URL}), before_keys=True) for path in ROUTES},
    **{f"GET {path}": Case(404, get(path), before_keys=True) for path in ROUTES},
}
